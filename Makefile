# make demo     a small dataset through every stage, a few minutes on two cores
# make test     the tests that take minutes; make test-all adds the long ones on real data
# make lint     ruff, mypy, import contract
# make docs     write docs/commands.md from the settings
# make bench    every stage side by side with nnU-Net, which gets an environment of its own (about 40 minutes)
# make held-out one fold on a dataset with held-out cases: DATA=folder BUDGET=30m
# make wheel    build the wheel and try it in an empty environment
# make clean    remove what these made

PYTHON ?= python3
VENV ?= .venv
DATA ?= ../shared/data/Dataset004_Hippocampus
BUDGET ?= 30m
BIN := $(VENV)/bin

.PHONY: setup demo test test-all lint docs bench held-out wheel clean

setup: $(VENV)/installed

# Only a change of the metadata or of the pinned versions installs again.
$(VENV)/installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,test]'
	touch $@

demo: setup
	$(BIN)/autoseg_demo --workdir demo

# One thread each: test processes that all start a thread per core would wait for each other.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow"

test-all: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

docs: setup
	$(BIN)/python docs/make_commands.py

bench: setup
	$(BIN)/python -m benchmarks

held-out: setup
	PATH="$(abspath $(BIN)):$$PATH" benchmarks/held_out.sh $(DATA) $(BUDGET)

wheel: setup
	$(BIN)/python -m build --wheel --outdir dist .
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd build && empty/bin/autoseg --version && empty/bin/autoseg_train -h > /dev/null

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find autoseg tests -name __pycache__ -type d -prune -exec rm -rf {} +
