# Every target sets up what it needs in .venv, once; again when pyproject.toml or the constraints change.
#
#   make demo      the whole method on CPU: recipes/lab.yaml, then its report
#   make test      the test suite
#   make lint      ruff and mypy
#   make bench     the benchmarks, each against a peer in the same run
#   make study     the lab's arms on both families, three seeds each (an hour on two cores)
#   make install   only the set-up
#   make clean     delete .venv, builds and caches (never runs/)
#
#   PYTHON=python3.12   the interpreter for .venv: 3.11 or newer
#   CONSTRAINTS=        newest versions instead of the pinned ones
#   JOBS=4              test processes

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
BENCH_STAMP := $(VENV)/.set-up-bench

# One thread a process: two threads on so small a model are slower than one, and several processes share the cores.
export OMP_NUM_THREADS ?= 1

.PHONY: install demo test lint bench study clean

install: $(STAMP)

# Some distributions ship Python without ensurepip; there the interpreter's own pip fetches one.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ASTER needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; }

$(STAMP): pyproject.toml $(CONSTRAINTS) | $(BIN)/pip
	$(BIN)/python -m pip install $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev,gguf]'
	@touch $@

# The peers, which nothing else needs: Jupyter of the sandbox, TRL of rollouts and training.
$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[bench]'
	@touch $@

demo: $(STAMP)
	$(BIN)/aster run recipes/lab.yaml

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The second model is skipped, and says so, where it is not installed (docs/real_model.md). On it a rollout of 64 trajectories
# takes minutes.
bench: $(BENCH_STAMP)
	@set -e; for file in $(filter-out %_soak.py,$(wildcard benchmarks/[a-z]*.py)); do echo "== $$file"; $(BIN)/python "$$file"; done
	$(BIN)/python benchmarks/rollout.py --model smollm2 --trajectories 16 --cases plain --threads $(JOBS)
	$(BIN)/python benchmarks/train_step.py --model smollm2 --threads $(JOBS)

study: $(STAMP)
	$(BIN)/python studies/lab_arms.py --out runs/arms

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
