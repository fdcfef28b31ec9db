# One environment for everything, from one lock.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)

.PHONY: repro test check table base bench studies phases lock

repro: .venv/ready        ## the whole pipeline, whatever is out of date
	dvc repro

test: .venv/ready         ## the tests
	python -m pytest

check: .venv/ready        ## lint, format, types
	ruff check .
	ruff format --check .
	mypy

table: .venv/ready        ## ten seeds at 1, 4 and 16 shots (hours on two cores; the same command goes on, and says how long)
	dreamset table --shots 1 4 16 --seeds 20-29 --jobs 2 --recipes stable_diffusion retrieved datadream_light

# Its pipeline is a DVC project of its own, in base/.
base: .venv/ready         ## train the bundled base again (about an hour on two cores)
	cd base && dvc repro

bench: .venv/ready        ## speed against plain loops
	python -m benchmarks

studies: .venv/ready      ## what pruning saves, and what it costs (hours on two cores; the same command goes on)
	python -m benchmarks.pruning --trials 40 --seeds 0-4 --jobs 2

phases: .venv/ready       ## the class-encoder method phase by phase (hours on two cores; the same command goes on)
	python -m benchmarks.phases --shots 16 --seeds 0-4 --jobs 2

lock:                     ## resolve pyproject.toml anew
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install -q '.[dev]'
	.venv-lock/bin/pip freeze --exclude dreamset > requirements.lock
	rm -rf .venv-lock

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -r requirements.lock
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	touch $@
