# Everything runs in .venv, built from pinned versions; nothing that happens to be installed is used.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help venv demo lint types unit test format clean
help:
	@echo "make demo    the main job on a procedural world: data, training, evaluation, report (8 minutes on 2 cores)"
	@echo "make test    lint, types and all tests"
	@echo "make unit    the tests alone        make format  reformat the code"

venv: $(VENV)/.ready
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: venv
	$(BIN)/mlesam demo

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/pyright

unit: venv
	$(BIN)/pytest -n 2

test: lint types unit

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build src/*.egg-info .pytest_cache .ruff_cache
