# Everything a person or CI types. Each target makes .venv itself, from constraints.txt, and relies on nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES := pyproject.toml constraints.txt

.PHONY: help demo lab test check bench gpu-check format clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp an extra: an environment is brought up to date when pyproject.toml or constraints.txt change.
$(VENV)/.stamp-%: $(SOURCES) | $(BIN)/python
	@echo "Installing mlscope-lab[$*] into $(VENV) ..."
	@# torch first and exactly: on Linux a looser wish brings a build with gigabytes of CUDA libraries
	@$(PIP) install --constraint constraints.txt "$$(grep -E '^torch==' constraints.txt)"
	@$(PIP) install --constraint constraints.txt --editable '.[$*]'
	@touch $@

demo: $(VENV)/.stamp-demo ## a real model on real pictures in three frameworks, and an HTML report
	@$(BIN)/mlscope demo --output out

lab: $(VENV)/.stamp-lab $(VENV)/.stamp-demo ## open JupyterLab on the notebooks
	@$(BIN)/mlscope lab

test: $(VENV)/.stamp-test ## all tests; browser tests where a Chromium is found or can be installed
	@$(BIN)/python tests/chromium.py
	@$(BIN)/python -m pytest

check: $(VENV)/.stamp-test ## ruff, mypy --strict and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.stamp-test ## what check wants, done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.stamp-test ## figures against the bare frameworks, as a table and JSON
	@$(BIN)/python -m tests.benchmarks --json out/bench.json

gpu-check: $(VENV)/.stamp-test ## what a CUDA device gives; says so where there is none
	@$(BIN)/python -m tests.gpu

clean: ## remove the environment and what was made
	rm -rf $(VENV) out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache
