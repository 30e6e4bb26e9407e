# `make help` lists the targets. Every target prints the command it runs.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    := $(BIN)/python -m
INSTALL = $(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable

# A machine with an NVIDIA driver gets the GPU packages too.
ACCELERATOR := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)

DATA      ?=
RECIPE    ?= yolov3-asff
OUTPUT    ?= runs/$(RECIPE)
WEIGHTS   ?= $(OUTPUT)/best.pt
MODEL     ?= $(basename $(WEIGHTS)).onnx
RESUME    ?=
PRECISION ?=
TARGET    ?=
MAX_AP_DROP ?=
SIZE      ?=
EPOCHS    ?=
SPLIT     ?=
SOURCE    ?=
ARGS      ?=

# Make a missing folder or file one clear line instead of a traceback further down.
need = $(if $(strip $($(1))),,$(error $(1) is not set; try: make $@ $(1)=$(2)))
SHOW = @printf '+ %s\n' '$(1)' && $(1)

.PHONY: help setup demo train onnx engine eval detect visualize visualise bench test test-runtime test-openvino check lint types clean

help: ## show this list
	@echo 'usage: make TARGET [VARIABLE=value ...]'
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | awk -F'|' '{ printf "  %-12s %s\n", $$1, $$2 }'
	@echo
	@echo 'variables: DATA= dataset folder, RECIPE= see "make train ARGS=--list", SIZE= input side, EPOCHS=,'
	@echo '  WEIGHTS= checkpoint, MODEL= .onnx file, PRECISION= fp32, fp16 or int8, TARGET= tensorrt, rtx or cpu, MAX_AP_DROP= points of AP, SOURCE= images, SPLIT=, OUTPUT=, RESUME=, ARGS= anything else'

setup: $(VENV)/.installed ## create .venv and install everything (every other target does this first)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo 'error: Python 3.10 or newer is needed (set PYTHON=)'; exit 3; }
	$(PYTHON) -m venv $(VENV) || { echo 'error: python3 -m venv failed; on Debian: apt-get install python3-venv'; exit 3; }
	$(INSTALL) '.[$(ACCELERATOR),train,dev]' || { test $(ACCELERATOR) = gpu && echo 'the GPU packages do not install here; going on without' && $(INSTALL) '.[cpu,train,dev]'; }
	$(INSTALL) '.[rtx]' || echo 'TensorRT-RTX does not install here; going on without (engines cannot be built without a GPU)'
	@touch $@

demo: setup ## train a small model on synthetic images, export it, verify the files (about 6 minutes on 2 CPU cores)
	$(call SHOW,$(RUN) export.demo $(if $(EPOCHS),--epochs $(EPOCHS)) $(ARGS))

train: setup ## train RECIPE on DATA into OUTPUT (RESUME=folder continues a run)
	$(if $(findstring --list,$(ARGS)),,$(call need,DATA,datasets/coco))
	$(call SHOW,$(RUN) train $(if $(DATA),--data "$(DATA)") $(if $(RESUME),--resume "$(RESUME)",--recipe $(RECIPE) --output "$(OUTPUT)") $(if $(SIZE),--size $(SIZE)) $(if $(EPOCHS),--epochs $(EPOCHS)) $(ARGS))

onnx: setup ## export WEIGHTS to MODEL (ONNX) and compare its outputs with PyTorch
	$(if $(filter-out fp32 fp16,$(PRECISION)),$(error PRECISION=$(PRECISION): this makes fp32 or fp16; int8 needs images, see make engine),)
	$(call SHOW,$(RUN) export.onnx --weights "$(WEIGHTS)" --output "$(MODEL)" $(if $(filter fp16,$(PRECISION)),--precision fp16) $(if $(SIZE),--size $(SIZE)) $(ARGS))

engine: setup ## WEIGHTS to ONNX and a TensorRT engine of PRECISION (fp16); fails unless AP on DATA is shown to be kept
	$(call need,DATA,datasets/coco)
	$(call SHOW,$(RUN) export.chain --weights "$(WEIGHTS)" --data "$(DATA)" $(if $(PRECISION),--precision $(PRECISION)) $(if $(TARGET),--target $(TARGET)) $(if $(SIZE),--size $(SIZE)) $(if $(SPLIT),--split $(SPLIT)) $(if $(MAX_AP_DROP),--max-ap-drop "$(MAX_AP_DROP)") $(ARGS))

eval: setup ## COCO accuracy of MODEL (or, with WEIGHTS=, of a checkpoint) on DATA
	$(call need,DATA,datasets/coco)
	$(call SHOW,$(RUN) $(if $(filter command environment,$(origin WEIGHTS)),$(if $(filter command environment,$(origin MODEL)),runtime.evaluate --engine "$(MODEL)",train.validate --weights "$(WEIGHTS)"),runtime.evaluate --engine "$(MODEL)") --data "$(DATA)" $(if $(SPLIT),--split $(SPLIT)) $(ARGS))

detect: setup ## run MODEL on SOURCE: an image, a folder, a glob pattern or a video
	$(call need,SOURCE,photos/)
	$(call SHOW,$(RUN) runtime.detect --engine "$(MODEL)" --source "$(SOURCE)" $(ARGS))

visualise: visualize # the spelling of earlier versions

visualize: setup ## draw how WEIGHTS (or MODEL=, exported with --inspect) fuses its levels on SOURCE
	$(call need,SOURCE,photos/)
	$(call SHOW,$(RUN) $(if $(filter command environment,$(origin MODEL)),runtime.visualize --engine "$(MODEL)",train.visualize --weights "$(WEIGHTS)") --source "$(SOURCE)" $(ARGS))

bench: setup ## time MODEL= stage by stage; without MODEL= run benchmarks/ (DATA= adds those that need images)
	$(call SHOW,$(RUN) $(if $(filter command environment,$(origin MODEL)),runtime.benchmark --engine "$(MODEL)" $(if $(SOURCE),--source "$(SOURCE)"),benchmarks $(if $(DATA),--data "$(DATA)")) $(ARGS))

test: setup ## all tests but the slow and the timed ones
	$(call SHOW,$(RUN) pytest $(ARGS))

test-runtime: ## the tests of runtime/ in an environment without torch and onnx
	@test -d $(VENV)-runtime || { $(PYTHON) -m venv $(VENV)-runtime && $(VENV)-runtime/bin/pip install --disable-pip-version-check --quiet \
		--constraint constraints.txt numpy opencv-python-headless pycocotools pyyaml tqdm onnxruntime pytest hypothesis; }
	$(call SHOW,$(VENV)-runtime/bin/python -m pytest tests/runtime $(ARGS))

test-openvino: setup ## the tests of OpenVINO in a process of their own (needs the extra "openvino")
	$(call SHOW,TEST_OPENVINO=1 $(RUN) pytest -k openvino $(ARGS))

lint: setup ## ruff check and format
	$(call SHOW,$(BIN)/ruff check .)
	$(call SHOW,$(BIN)/ruff format --check .)

types: setup ## mypy --strict
	$(call SHOW,$(BIN)/mypy)

check: lint types test ## lint, types, tests

clean: ## remove .venv, demo/ and caches; runs/ stays
	rm -rf $(VENV) $(VENV)-runtime demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
