VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
DONE := $(VENV)/.installed

.PHONY: help install quickstart test test-slow test-gpu lint package fix docs site bench

help:  ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(DONE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	@touch $(DONE)

install: $(DONE)  ## create .venv and install, once

quickstart: $(DONE)  ## the main job on two cores, ending with quickstart.md
	$(BIN)/icl-bench quickstart
	@echo "next: . $(BIN)/activate, so that the shell finds icl-bench"

test: $(DONE)  ## all tests that need no GPU and little time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m "not gpu and not slow"

test-slow: $(DONE)  ## the long versions of tests: faults of a store, malformed inputs by the ten thousand
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m slow tests

test-gpu:  ## the kernels and fleets on a CUDA device, with the Python that has it (PYTHON=...)
	$(PYTHON) -m pytest -q -m gpu $(ARGS) $$(grep -rl --include='test_*.py' 'mark\.gpu' tests | sort) tests/kernels/fleet

lint: $(DONE)  ## style, types, layers, generated pages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m cogapp --check $(COGGED)

package: $(DONE)  ## build wheel and sdist into dist/, check them, and run the wheel in an environment of its own
	OMP_NUM_THREADS=1 $(BIN)/python .ci/package.py dist

fix: $(DONE)  ## format and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DONE)  ## write the generated pages anew
	$(BIN)/python -m docs.pictures
	$(BIN)/python -m docs.validation
	$(BIN)/python -m cogapp -r $(COGGED)

$(VENV)/.site: $(DONE)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group site
	@touch $@

site: $(VENV)/.site  ## the documentation site into build/site, with its links checked; needs no network once installed
	$(BIN)/python -m docs.site build/site

bench: $(DONE)  ## time fleets and kernels on this machine
	$(BIN)/python benchmarks/fleet.py

COGGED := README.md docs/design.md docs/tasks.md docs/architectures.md docs/cli.md docs/engines.md docs/records.md docs/study-files.md docs/validation.md
