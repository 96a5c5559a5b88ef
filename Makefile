# Two commands on a fresh machine with Python ≥ 3.11, pip and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# statedict's own modules are compiled once, so that every command starts fast
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test weights lint types fuzz faults bench clean

demo: $(VENV)/.core
	@$(BIN)/statedict demo

test: lint types weights
	$(BIN)/python -m pytest -n 2 --dist worksteal

weights: $(VENV)/.test
	$(BIN)/python tests/real/fetch.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

fuzz: $(VENV)/.test
	$(BIN)/python -m fuzz --jobs 2

faults: $(VENV)/.test
	$(BIN)/python -m faults --jobs 2 --write

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.core

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
