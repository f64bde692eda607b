# Two commands do all set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two sets: what runs, and what tests need on top. Compiled once: a process that compiles torch and transformers for
# itself, where it may not write into the environment, takes 10 s longer to start.
READY := $(VENV)/.ready
TESTS := $(VENV)/.ready-tests
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python
PIN := $(BIN)/uv pip compile --quiet --no-header --no-annotate --no-emit-index-url --generate-hashes --universal \
  --python-version 3.11

.PHONY: help setup demo test test-pure test-long faults check lint bench-streams bench-rows bench-life pin generate clean
.DEFAULT_GOAL := help

help:
	@echo "make demo                      watch the loop learn once round (DATA=DIR OLD=n NEW=n for your own data)"
	@echo "make test                      all tests, on real parts"
	@echo "make faults                    a million events under 200 faults: lost, doubled, torn (EVENTS=n FAULTS=n SEED=n)"
	@echo "make check                     lint, types, import direction and pure tests in seconds"
	@echo "make bench-life                months of simulated use: what the loop recovers, spoils, misses (LIFE=FILE SEEDS=n)"
	@echo "make bench-rows                what is learned from and judged by: kept rows, leaks, how often the gate errs"
	@echo "make bench-streams             how fast the data plane is, one JSON line per figure (a quarter of an hour)"

setup: $(READY)

$(READY): requirements.txt requirements-uv.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + \
	  "; name another: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@echo "setting up $(VENV) (once; about two minutes and 7 GB, most of it torch)" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
	@$(INSTALL) --require-hashes -r requirements.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

$(TESTS): $(READY) requirements-dev.txt
	@$(INSTALL) --require-hashes -r requirements-dev.txt
	@touch $@

# `python -m` imports from the current folder first; here that is the project itself.
demo: $(READY)
	@$(BIN)/python -m deploy.demo $(if $(DATA),--data "$(DATA)") $(if $(OLD),--old $(OLD)) $(if $(NEW),--new $(NEW))

# What waits for servers first, what computes fills the gaps; the running system has the machine to itself.
test: lint
	@$(BIN)/python -m pytest tests/integration tests/containers tests/hostile tests/contract tests/unit -n 3 \
	  --dist loadfile --no-loadscope-reorder --durations=10
	@$(BIN)/python -m pytest tests/e2e --durations=10

test-long: $(TESTS)
	@$(BIN)/python -m pytest -m "long or fuzz" --hypothesis-profile=long --timeout=1800

faults: $(TESTS)
	@$(BIN)/python -m tests.faults $(if $(EVENTS),--events $(EVENTS)) $(if $(FAULTS),--faults $(FAULTS)) $(if $(SEED),--seed $(SEED))

check: $(TESTS)
	@$(MAKE) --no-print-directory -j2 lint test-pure

test-pure: $(TESTS)
	@$(BIN)/python -m pytest tests/unit tests/contract -n 2 -m "not long and not slow"

lint: $(TESTS)
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m schemas.generate --check

bench-streams: $(TESTS)
	@$(BIN)/python -m tests.bench.streams $(if $(ONLY),--only $(ONLY))

bench-life: $(TESTS)
	@$(BIN)/python -m tests.bench.life $(if $(LIFE),--life $(LIFE)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(ONLY),--life $(ONLY))

bench-rows: $(TESTS)
	@$(BIN)/python -m tests.bench.rows $(if $(ONLY),--only $(ONLY))

generate: $(READY)
	@$(BIN)/python -m schemas.generate

# The newest of everything, with the sha256 of each file that an index may deliver; Kafka's jars likewise. Without
# UPGRADE (`make pin UPGRADE=`) only what is new or gone changes.
UPGRADE = --upgrade
pin: $(READY)
	@echo uv | $(PIN) $(UPGRADE) - -o requirements-uv.txt
	@$(PIN) $(UPGRADE) requirements-dev.in -o requirements-dev.txt
	@$(PIN) --constraints requirements-dev.txt requirements.in -o requirements.txt
	@$(BIN)/python -m deploy.local.jars

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build *.egg-info
