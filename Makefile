# Every target installs what it needs into .venv; nothing has to be active.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two at a time, each file in one process: what a file's tests share is started once, and a small machine holds two.
# In the order they are found: the files with the fewest tests take longest, and would be left for the end.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-unit soak lint protos clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip==25.3
	$(BIN)/pip install --quiet --constraint constraints.txt --group dev --editable '.[all]'
	@touch $@

demo: $(STAMP) ## A small catalogue through the whole pipeline, in a few minutes
	$(BIN)/persona4rec demo

test: $(STAMP) ## Everything that must hold before a change lands
	$(BIN)/pytest $(PARALLEL)

test-unit: $(STAMP) ## The part of it that starts no server
	$(BIN)/pytest $(PARALLEL) -m 'not integration and not soak'

soak: $(STAMP) ## The long forms of the fault tests: an hour and more
	$(BIN)/pytest $(PARALLEL) -m soak

lint: $(STAMP) ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

protos: $(STAMP) ## Write reranker/v1 anew from protos/
	$(BIN)/python protos/generate.py .

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info
