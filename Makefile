# Two commands on a fresh machine with Python ≥ 3.11, pip and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable
# statedict's own modules are compiled once, so that every command starts fast
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test newest oldest peers weights browser lint types fuzz faults bench clean

demo: $(VENV)/.core
	@$(BIN)/statedict demo

test: lint types weights browser
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The suite with the newest releases of everything, and with the oldest that pyproject.toml allows. Each PyTorch has an
# environment of its own, of about 6 GB with what it brings for GPUs. A constraint on torch in a configuration of pip is
# lifted for these commands.
NEWEST := .venv-newest
OLDEST := 2.6.0 2.9.1

newest: weights browser
	$(PYTHON) -m venv $(NEWEST)
	PIP_CONFIG_FILE=/dev/null $(NEWEST)/bin/pip install --quiet --disable-pip-version-check \
		--upgrade --upgrade-strategy eager --editable '.[test]'
	$(NEWEST)/bin/python -m pytest -n 2 --dist worksteal

oldest: $(OLDEST:%=oldest-%)

oldest-%: weights browser
	$(PYTHON) -m venv .venv-$*
	PIP_CONFIG_FILE=/dev/null .venv-$*/bin/pip install --quiet --disable-pip-version-check \
		--constraint constraints-oldest.txt --editable '.[test]' torch==$*
	.venv-$*/bin/python -m pytest -n 2 --dist worksteal

# What libraries too heavy for the tests computed is recorded in tests/peers; this computes it again and compares.
PEERS := coreml dequantizers executorch flax mergekit mindspore openvino orbax paddle quantizers tensorflow torchao
peers: $(PEERS:%=peers-%)

peers-%:
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet --disable-pip-version-check --requirement tests/peers/$*.txt
	.venv-$*/bin/python -P tests/peers/$*.py

weights: $(VENV)/.test
	$(BIN)/python tests/real/fetch.py

# where neither a Chromium nor a way to install one is found, the tests of pages fail and say so
browser:
	@for name in $(BROWSERS); do command -v $$name >/dev/null && exit 0; done; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
			apt-get -qq install -y --no-install-recommends chromium >/dev/null; \
	fi || true

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

fuzz: $(VENV)/.test
	$(BIN)/python -m fuzz --jobs 2
	$(BIN)/python -m fuzz differential --jobs 2

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
	rm -rf $(VENV) $(NEWEST) $(OLDEST:%=.venv-%) $(PEERS:%=.venv-%) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
