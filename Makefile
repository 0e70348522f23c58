# Everything by one command: each target sets up what it needs first. `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
# Of pyproject.toml: cuda12, tpu. A machine with an NVIDIA driver gets cuda12 by itself.
EXTRA  ?= $(if $(shell command -v nvidia-smi 2>/dev/null),cuda12)
# Passed on to `cifar-jax train`: make exp-basic ARGS="--seed 1 --set epochs=2"
ARGS   ?=

BIN         := $(VENV)/bin
CLI         := $(BIN)/cifar-jax
PY_VERSION  := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# The versions that were tested, where they were tested on this Python.
CONSTRAINTS := $(wildcard constraints/python$(PY_VERSION).txt)
EXPERIMENTS := basic net net-bn-gap net-attention resnet18-sgd resnet18-adam \
               resnet18-adam-lr1e-4 resnet10 resnet10-plateau resnet10-separable
empty :=
comma := ,
EXTRAS := $(subst $(empty) ,$(comma),$(strip dev $(EXTRA)))

.DEFAULT_GOAL := help
.PHONY: help setup demo bench tpu-check test test-slow lint format data paper report readme constraints clean

help: ## List the targets
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "cifar-jax needs Python 3.11 or newer: make PYTHON=python3.12 …" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[$(EXTRAS)]' $(addprefix -c ,$(CONSTRAINTS))
	@touch $@

setup: $(VENV)/.installed ## Make .venv and install into it

demo: setup ## Train two networks for a minute on the embedded digits, and report
	$(CLI) train basic --workdir runs/demo/basic --set data.dataset=digits \
	  --set data.validation=0.1 --set epochs=10
	$(CLI) train resnet10-separable --workdir runs/demo/resnet10-separable \
	  --set data.dataset=digits --set data.validation=0.1 --set epochs=4 --set batch_size=32 \
	  --set optimizer.lr=1e-3 --set data.train_images=512 --set data.flip=false
	$(CLI) report runs/demo

exp-%: setup ## Train one experiment on CIFAR-10, such as exp-resnet18-adam
	$(CLI) train $* $(ARGS)

paper: $(addprefix exp-,$(EXPERIMENTS)) report ## Train all ten, then report

report: setup ## The paper against what was measured, from runs/
	$(CLI) report

readme: setup ## Renew the README's table from results/
	$(CLI) report --readme README.md

data: setup ## Download and prepare CIFAR-10
	$(CLI) data prepare

bench: setup ## Whole train steps beside PyTorch's, where PyTorch is installed
	$(BIN)/python -m benchmarks.bench $(ARGS)

tpu-check: setup ## Compile every train step for TPUs, without one (EXTRA=tpu)
	$(BIN)/python -m benchmarks.tpu_check $(ARGS)

test: setup ## The tests that take seconds
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: setup ## The tests that train for minutes
	$(BIN)/python -m pytest -m slow

lint: setup ## Style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error
	$(BIN)/lint-imports

format: setup ## Put the code in form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: ## Record the newest versions, to be tested, for this Python
	rm -rf $(VENV)-newest
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet -e '.[dev]'
	mkdir -p constraints
	$(VENV)-newest/bin/python -m pip freeze --exclude-editable > constraints/python$(PY_VERSION).txt
	rm -rf $(VENV)-newest

clean: ## Delete what was made, but not runs/
	rm -rf $(VENV) $(VENV)-newest build dist .pytest_cache .ruff_cache .import_linter_cache
