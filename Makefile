# The front door. Everything runs in .venv, which the first target that needs it makes.

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: install demo test lint format proto bench soak-edge clean

install: $(INSTALLED)  ## Make .venv with everything in it

# torch first and by its pin: asked for together with others, pip may take a build with CUDA.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) torch
	$(PIP) --editable '.[cpu,train,dev]'
	touch $@

demo: $(INSTALLED)  ## Tell the whole story; DATA=/path/to/folders NEW=class for your own photos
	$(BIN)/topwork-train demo $(if $(DATA),"$(DATA)") $(if $(NEW),--new "$(NEW)")

test: $(INSTALLED)  ## Run all tests
	$(BIN)/python -m pytest

lint: $(INSTALLED)  ## Style, types, import rules, contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check

format: $(INSTALLED)  ## Format and fix what can be fixed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

proto: $(INSTALLED)  ## Generate service/topwork/v1 from proto/
	$(BIN)/python proto/generate.py

bench: $(INSTALLED)  ## Measure; DATA=/path/to/folders for your own photos
	PYTHONPATH=tests $(BIN)/python -m benchmarks.serving $(if $(DATA),"$(DATA)") $(if $(PEERS),--peers "$(PEERS)") --docs
	$(BIN)/python -m pytest -q tests/benchmarks/pieces.py
	$(BIN)/python tests/benchmarks/learning.py $(if $(DATA),"$(DATA)")
	$(BIN)/python tests/benchmarks/embedding.py $(if $(DATA),"$(DATA)")

soak-edge: $(INSTALLED)  ## Let clients come, go and cancel for MINUTES; memory and answers must hold
	PYTHONPATH=tests $(BIN)/python -m benchmarks.edge_soak --minutes $(or $(MINUTES),60)

clean:  ## Remove what make made
	rm -rf $(VENV) build dist
