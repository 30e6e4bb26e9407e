# `make help` lists the targets. Every target prints the command it runs.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    := $(BIN)/python -m
LOCKED  = $(BIN)/pip install --disable-pip-version-check --quiet --require-hashes
UV      = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
INSTALL = $(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable

# A machine with an NVIDIA driver gets the GPU packages too.
ACCELERATOR := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)

# Variables of each target. One that is not used is an error, so that a misspelled one does not go unnoticed.
USES_demo      := EPOCHS ARGS
USES_data      := DATA ARGS
USES_train     := DATA RECIPE OUTPUT RESUME SIZE EPOCHS ARGS
USES_onnx      := WEIGHTS MODEL RECIPE PRECISION SIZE ARGS
USES_engine    := WEIGHTS DATA RECIPE OUTPUT PRECISION TARGET SIZE SPLIT MAX_AP_DROP RECOVER ARGS
USES_eval      := WEIGHTS MODEL RECIPE DATA SPLIT ARGS
USES_detect    := WEIGHTS MODEL RECIPE SOURCE OUTPUT ARGS
USES_visualize := WEIGHTS MODEL RECIPE SOURCE OUTPUT ARGS
USES_visualise := $(USES_visualize)
USES_serve     := WEIGHTS MODEL RECIPE ARGS
USES_bench     := MODEL SOURCE DATA ARGS
USES_test      := ARGS
USES_test-runtime  := ARGS
USES_test-openvino := ARGS
USES_check     := ARGS

GOALS     := $(or $(MAKECMDGOALS),help)
VARIABLES := $(sort $(foreach target,$(.VARIABLES),$(if $(filter USES_%,$(target)),$($(target)))))
GIVEN     := $(strip $(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),$(name))))
UNUSED    := $(filter-out PYTHON VENV $(foreach goal,$(GOALS),$(USES_$(goal))),$(GIVEN))
$(foreach name,$(UNUSED),$(error $(name) is not a variable of `make $(GOALS)`; it has: $(or $(strip $(foreach goal,$(GOALS),$(USES_$(goal)))),none)))

# What a user gives reaches the recipes as environment variables, not as program text: quotes, $, ` and ; in names are data.
$(foreach name,$(VARIABLES),$(eval override export $(name) := $$(value $(name))))
WEIGHTS_ALONE = $(if $(call given,MODEL),,$(call given,WEIGHTS))
given = $(strip $(value $(1)))

# Make a missing folder or file one clear line instead of a traceback further down.
need = $(if $(call given,$(1)),,$(error $(1) is not set; try: make $@ $(1)=$(2)))

# Prints a command and runs it. `extra` holds the words of ARGS, in which quotes group words, and nothing is expanded.
SHOW = @run() { printf '+'; printf ' %q' "$$@"; echo; "$$@"; }; \
	recipe="$${RECIPE:-yolov3-asff}"; weights="$${WEIGHTS:-runs/$$recipe/best.pt}"; model="$${MODEL:-$${weights%.*}.onnx}"; \
	words=$$(xargs -r printf '%q ' <<< "$$ARGS") && eval "extra=($$words)" && run

.PHONY: help setup lock rtx lean demo data train onnx engine eval detect visualize visualise serve bench test test-runtime test-openvino check lint types clean

help: ## show this list
	@echo 'usage: make TARGET [VARIABLE=value ...]'
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | awk -F'|' '{ printf "  %-14s %s\n", $$1, $$2 }'
	@echo
	@echo 'variables: DATA= dataset folder, RECIPE= see "make train ARGS=--list", SIZE= input side, EPOCHS=, WEIGHTS= checkpoint,'
	@echo '  MODEL= .onnx file, PRECISION= fp32, fp16 or int8, TARGET= tensorrt, rtx or cpu, MAX_AP_DROP= points of AP, RECOVER= qat,'
	@echo '  SOURCE= images, SPLIT=, OUTPUT=, RESUME=, ARGS= anything else; one that a target does not use is an error'

setup: $(VENV)/.installed ## create .venv and install everything (every other target does this first)

$(VENV)/.installed: pyproject.toml constraints.txt requirements/common.lock requirements/cpu.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'error: Python 3.11 or newer is needed (set PYTHON=)'; exit 3; }
	$(PYTHON) -m venv $(VENV) || { echo 'error: python3 -m venv failed; on Debian: apt-get install python3-venv'; exit 3; }
	$(LOCKED) --requirement requirements/common.lock
	$(if $(filter cpu,$(ACCELERATOR)),$(LOCKED) --no-deps --requirement requirements/cpu.lock)
	$(INSTALL) '.[$(ACCELERATOR),train,fonts,dev]' || { test $(ACCELERATOR) = gpu && echo 'the GPU packages do not install here; going on without' && $(INSTALL) '.[cpu,train,fonts,dev]'; }
	@touch $@

lock: ## renew requirements/*.lock from constraints.txt (needs uv)
	{ grep -vE '^#|torch|tensorrt|openvino|onnxruntime' constraints.txt; cat requirements/indirect.in; } | $(UV) - --output-file requirements/common.lock
	grep '^onnxruntime==' constraints.txt | $(UV) - --no-deps --output-file requirements/cpu.lock

rtx: $(VENV)/.rtx ## install TensorRT-RTX, which builds engines without a GPU (proprietary: NVIDIA's license applies)

$(VENV)/.rtx: $(VENV)/.installed
	@echo 'installing TensorRT-RTX, proprietary software of NVIDIA; its license is in the package'
	$(INSTALL) '.[rtx]' || echo 'TensorRT-RTX does not install here; going on without (engines cannot be built without a GPU)'
	@touch $@

lean: $(VENV)/.lean ## install TensorRT's lean runtime and the full one's bindings, whose names are checked in the tests (proprietary: NVIDIA's license applies)

$(VENV)/.lean: $(VENV)/.installed
	@echo 'installing the lean runtime of TensorRT, proprietary software of NVIDIA; its license is in the package'
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps tensorrt-lean-cu13-bindings==11.4.0.106 tensorrt-lean-cu13-libs==11.4.0.106 \
		tensorrt-cu13-bindings==11.4.0.106 || \
		echo 'the lean runtime does not install here; going on without'
	@touch $@

demo: setup rtx ## train a small model on synthetic images, export it, verify the files (about 10 minutes on 2 CPU cores)
	$(SHOW) $(RUN) export.demo $${EPOCHS:+--epochs "$$EPOCHS"} "$${extra[@]}"

data: setup ## examine DATA: layout, splits, classes, what is left out and why (ARGS='--strict --show 9')
	$(call need,DATA,datasets/mine)
	$(SHOW) $(RUN) train.data --data "$$DATA" "$${extra[@]}"

train: setup ## train RECIPE on DATA into OUTPUT (RESUME=folder continues a run)
	$(if $(findstring --list,$(value ARGS)),,$(call need,DATA,datasets/coco))
	$(SHOW) $(RUN) train $${DATA:+--data "$$DATA"} $(if $(call given,RESUME),--resume "$$RESUME",--recipe "$$recipe" --output "$${OUTPUT:-runs/$$recipe}") \
		$${SIZE:+--size "$$SIZE"} $${EPOCHS:+--epochs "$$EPOCHS"} "$${extra[@]}"

onnx: setup ## export WEIGHTS to MODEL (ONNX) and compare its outputs with PyTorch
	$(if $(filter-out fp32 fp16,$(value PRECISION)),$(error PRECISION=$(value PRECISION): this makes fp32 or fp16; int8 needs images, see make engine),)
	$(SHOW) $(RUN) export.onnx --weights "$$weights" --output "$$model" $${PRECISION:+--precision "$$PRECISION"} $${SIZE:+--size "$$SIZE"} "$${extra[@]}"

engine: setup ## WEIGHTS to ONNX and a TensorRT engine of PRECISION (fp16); fails unless AP on DATA is shown to be kept
	$(call need,DATA,datasets/coco)
	$(SHOW) $(RUN) export.chain --weights "$$weights" --data "$$DATA" $${OUTPUT:+--output "$$OUTPUT"} $${PRECISION:+--precision "$$PRECISION"} \
		$${TARGET:+--target "$$TARGET"} $${SIZE:+--size "$$SIZE"} $${SPLIT:+--split "$$SPLIT"} $${MAX_AP_DROP:+--max-ap-drop "$$MAX_AP_DROP"} \
		$${RECOVER:+--recover "$$RECOVER"} "$${extra[@]}"

eval: setup ## COCO accuracy of MODEL (or, with WEIGHTS=, of a checkpoint) on DATA
	$(call need,DATA,datasets/coco)
	$(SHOW) $(RUN) $(if $(WEIGHTS_ALONE),train.validate --weights "$$weights",runtime.evaluate --engine "$$model") --data "$$DATA" \
		$${SPLIT:+--split "$$SPLIT"} "$${extra[@]}"

detect: setup ## run MODEL on SOURCE: an image, folder, glob pattern, video, list, camera or stream
	$(call need,SOURCE,photos/)
	$(SHOW) $(RUN) runtime.detect --engine "$$model" --source "$$SOURCE" $${OUTPUT:+--output "$$OUTPUT"} "$${extra[@]}"

visualise: visualize # the spelling of earlier versions

visualize: setup ## draw how WEIGHTS (or MODEL=, exported with --inspect) fuses its levels on SOURCE
	$(call need,SOURCE,photos/)
	$(SHOW) $(RUN) $(if $(call given,MODEL),runtime.visualize --engine "$$model",train.visualize --weights "$$weights") --source "$$SOURCE" \
		$${OUTPUT:+--output "$$OUTPUT"} "$${extra[@]}"

serve: setup ## serve MODEL over HTTP on this machine; its page shows what it finds (ARGS="--port 8080")
	$(SHOW) $(RUN) runtime.serve --engine "$$model" "$${extra[@]}"

bench: setup ## time MODEL= stage by stage; without MODEL= run benchmarks/ (DATA= adds those that need images)
	$(SHOW) $(RUN) $(if $(call given,MODEL),runtime.benchmark --engine "$$model" $${SOURCE:+--source "$$SOURCE"},benchmarks $${DATA:+--data "$$DATA"}) "$${extra[@]}"

test: setup ## all tests but the slow and the timed ones
	$(SHOW) env OMP_NUM_THREADS=1 $(RUN) pytest -n auto --dist loadfile --timeout 1800 "$${extra[@]}"

test-runtime: ## the tests of runtime/ in an environment without torch and onnx
	@test -d $(VENV)-runtime || { $(PYTHON) -m venv $(VENV)-runtime && $(VENV)-runtime/bin/pip install --disable-pip-version-check --quiet \
		--constraint constraints.txt anyascii av numpy opencv-python-headless pycocotools pyyaml simplejpeg tqdm onnxruntime pytest hypothesis; }
	$(SHOW) $(VENV)-runtime/bin/python -m pytest tests/runtime "$${extra[@]}"

test-openvino: setup ## the tests of OpenVINO in a process of their own (needs the extra "openvino")
	$(SHOW) env TEST_OPENVINO=1 $(RUN) pytest -k openvino "$${extra[@]}"

lint: setup ## ruff check and format
	$(SHOW) $(BIN)/ruff check .
	$(SHOW) $(BIN)/ruff format --check .

types: setup ## mypy --strict
	$(SHOW) $(BIN)/mypy

check: lint types test ## lint, types, tests

clean: ## remove .venv, demo/ and caches; runs/ stays
	rm -rf $(VENV) $(VENV)-runtime demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
