# The front door. Everything runs in .venv, which the first target that needs it makes.

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Of the container: serve, serve-cuda or train.
TARGET := serve
IMAGE := topwork:$(TARGET)

.PHONY: install demo test test-fast tritonclient lint format proto released bench image image-base image-test soak fuzz audit sbom soak-edge clean

install: $(INSTALLED)  ## Make .venv with everything in it; TORCH_INDEX=, an index of torch for CPUs alone

# torch first and by its pin: asked for together with others, pip may take a build with CUDA, as it does
# without TORCH_INDEX, the index of torch for CPUs.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)" torch torchvision,torch)
	$(PIP) --editable '.[cpu,train,dev]'
	touch $@

demo: $(INSTALLED)  ## Tell the whole story; DATA=/path/to/folders NEW=class for your own photos
	$(BIN)/topwork-train demo $(if $(DATA),"$(DATA)") $(if $(NEW),--new "$(NEW)")

# Compiled once, and not in each of hundreds of processes, whatever the environment says.
test test-fast: export PYTHONDONTWRITEBYTECODE :=
test: $(INSTALLED)  ## Run all tests, on all cores; one process more, for many tests wait for a server
	$(BIN)/python -m pytest --numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 1))

test-fast: $(INSTALLED)  ## Run the tests that need neither torch nor a server process, in a minute
	$(BIN)/python -m pytest --numprocesses auto -m 'not slow' --ignore tests/unit/trainer tests/unit

# Its grpcio and protobuf are none that our generated code is made for.
.venv-tritonclient/installed:
	$(PYTHON) -m venv .venv-tritonclient
	.venv-tritonclient/bin/python -m pip install --quiet --disable-pip-version-check 'tritonclient[grpc]==2.73.0'
	touch $@

tritonclient: $(INSTALLED) .venv-tritonclient/installed  ## Test with NVIDIA's client, in an environment of its own
	$(BIN)/python -m pytest tests/integration/test_tritonclient.py

lint: $(INSTALLED)  ## Style, types, import rules, contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check

format: $(INSTALLED)  ## Format and fix what can be fixed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

proto: $(INSTALLED)  ## Generate service/topwork/{inference,v1} and docs/api.md from proto/
	$(BIN)/python proto/generate.py

released: $(INSTALLED)  ## At a release: keep its contract and what it stores, for the tests of later ones
	$(BIN)/python proto/generate.py --release
	PYTHONPATH=tests $(BIN)/python -m golden.make

bench: $(INSTALLED)  ## Measure; DATA=/path/to/folders for your own photos
	PYTHONPATH=tests $(BIN)/python -m benchmarks.serving $(if $(DATA),"$(DATA)") $(if $(PEERS),--peers "$(PEERS)") --docs
	$(BIN)/python -m pytest -q tests/benchmarks/pieces.py
	PYTHONPATH=tests $(BIN)/python -m benchmarks.learning $(if $(DATA),"$(DATA)") $(if $(NEW),--new "$(NEW)") --svg docs/learning.svg
	PYTHONPATH=tests $(BIN)/python -m benchmarks.embedding $(if $(DATA),"$(DATA)")

image:  ## Build a container image; TARGET=serve-cuda or train, FLAGS for the build
	$(PYTHON) deploy/image.py $(TARGET) --tag $(IMAGE) $(FLAGS)

image-base:  ## Make the base image from Debian's packages, where no registry answers
	$(PYTHON) deploy/image.py base

image-test: $(INSTALLED) image  ## Build the image and try it
	TOPWORK_IMAGE=$(IMAGE) TOPWORK_ENGINE="$$($(PYTHON) deploy/image.py engine)" \
		$(BIN)/python -m pytest -s tests/image

soak: $(INSTALLED)  ## Kill server and worker for some minutes; KILLS=, MINUTES= (at most), SEED=
	PYTHONPATH=tests $(BIN)/python -m soak $(if $(KILLS),--kills $(KILLS)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

fuzz: $(INSTALLED)  ## Search for inputs that break what reads them; SECONDS=60 for each target
	$(PIP) --editable '.[fuzz]'
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(or $(SECONDS),60) $(TARGETS)

# Of another environment, such as a server's: OF=/path/to/its/bin/python
OF ?= $(BIN)/python
TOOLS := .venv-audit

$(TOOLS)/installed: constraints.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		cyclonedx-bom pip-audit pip-licenses
	touch $@

audit: $(INSTALLED) $(TOOLS)/installed  ## Known vulnerabilities and licences of what is installed
	$(BIN)/python .ci/audit.py $(TOOLS)/bin "$(OF)" build

sbom: $(INSTALLED) $(TOOLS)/installed  ## What is installed, as a CycloneDX bill of materials: build/sbom.json
	mkdir -p build
	$(TOOLS)/bin/cyclonedx-py environment "$(OF)" --pyproject pyproject.toml --output-reproducible \
		--output-file build/sbom.json

soak-edge: $(INSTALLED)  ## Let clients come, go and cancel for MINUTES; memory and answers must hold
	PYTHONPATH=tests $(BIN)/python -m benchmarks.edge_soak --minutes $(or $(MINUTES),60)

clean:  ## Remove what make made
	rm -rf $(VENV) $(TOOLS) .venv-tritonclient build dist
