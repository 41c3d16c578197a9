# `make` lists what can be made.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help train test test-long benchmark lint types check docs prose clean

help:          ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*##/\1\t/' | expand -t 14

train: $(VENV)/train   ## make the environment and run the main job: digits, 50 labels, VAT
	$(BIN)/python src/train.py model=cnn vat.eps=2.0

test: $(VENV)/test     ## make the environment and run the test suite
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test-long: $(VENV)/test  ## the tests that take minutes
	$(BIN)/python -m pytest -m long -o faulthandler_timeout=3600

benchmark: $(VENV)/train  ## time a step, the trainer around it and the data
	$(BIN)/python scripts/benchmark.py

check: lint types      ## lint and types

lint: $(VENV)/test     ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test    ## pyright
	$(BIN)/pyright

docs: $(VENV)/docs     ## the pages and the docstrings as a site in site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

prose:         ## measure the words of the pages
	$(PYTHON) scripts/prose.py

clean:         ## remove the environment and what runs left behind
	rm -rf $(VENV) outputs multirun results search site .pytest_cache .ruff_cache

$(VENV)/train: requirements.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

$(VENV)/test: $(VENV)/train requirements-dev.txt
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	touch $@

$(VENV)/docs: $(VENV)/train requirements-docs.txt
	$(BIN)/python -m pip install --quiet --requirement requirements-docs.txt
	touch $@
