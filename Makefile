# Everything by one command: each target sets up what it needs first. `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
# Of pyproject.toml: cuda12, tpu. A machine with an NVIDIA driver gets cuda12 by itself.
EXTRA  ?= $(if $(shell command -v nvidia-smi 2>/dev/null),cuda12)
# Passed on to the command: make exp-basic ARGS="--seed 1 --set epochs=2"
ARGS   ?=

BIN         := $(VENV)/bin
CLI         := $(BIN)/cifar-jax
PY_VERSION  := $(shell $(firstword $(wildcard $(BIN)/python) $(PYTHON)) -c \
                 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# The versions that were tested, where they were tested on this Python.
CONSTRAINTS := $(wildcard constraints/python$(PY_VERSION).txt)
PYTHONS     := 3.11 3.12 3.13
# Resolves for every Python without having it.
COMPILE     := $(BIN)/uv pip compile --quiet --upgrade --no-annotate --extra test --extra lint \
                 --custom-compile-command "make constraints" pyproject.toml
empty :=
comma := ,
extras = $(subst $(empty) ,$(comma),$(strip $(EXTRA) $(1)))
# A stamp for each set of extras, so that `make EXTRA=tpu` installs what an earlier make did not.
USER_SETUP := $(VENV)/.installed$(addprefix -,$(extras))
TEST_SETUP := $(VENV)/.installed-$(call extras,test)
LINT_SETUP := $(VENV)/.installed-$(call extras,lint)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo bench tpu-check test test-oldest test-slow torture mutants lint format data \
        paper report weights readme constraints clean

help: ## List the targets
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(TEST_SETUP): TOOLS := test
$(LINT_SETUP): TOOLS := lint
$(USER_SETUP) $(TEST_SETUP) $(LINT_SETUP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "cifar-jax needs Python 3.11 or newer: make PYTHON=python3.12 …" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(addprefix -c ,$(CONSTRAINTS)) \
	  -e '.$(addsuffix ],$(addprefix [,$(call extras,$(TOOLS))))'
	@touch $@

setup: $(USER_SETUP) ## Make .venv and install into it

demo: setup ## Train two networks for a few minutes on the embedded digits, and report
	$(CLI) train basic --workdir runs/demo/basic --set data.dataset=digits \
	  --set data.validation=0.1 --set epochs=10
	$(CLI) train resnet10-separable --workdir runs/demo/resnet10-separable \
	  --set data.dataset=digits --set data.validation=0.1 --set epochs=4 --set batch_size=32 \
	  --set optimizer.lr=1e-3 --set data.train_images=512 --set data.flip=false
	$(CLI) report runs/demo

exp-%: setup ## Train one experiment on CIFAR-10, such as exp-resnet18-adam
	$(CLI) train $* $(ARGS)

paper: setup ## Train all ten; after a stop, go on with those that are not finished
	$(CLI) train --paper $(ARGS)
	$(CLI) report

report: setup ## The paper against what was measured, from runs/
	$(CLI) report

weights: setup ## Take a recorded run's weights into the package: make weights RUN=runs/basic/seed0
	$(CLI) export $(RUN) --to safetensors --force \
	  --output cifar_jax/weights/$(notdir $(patsubst %/,%,$(dir $(RUN:/=)))).safetensors

readme: setup ## Renew the README's tables and figures from results/
	$(CLI) report --readme README.md

data: setup ## Download and prepare CIFAR-10
	$(CLI) data prepare

bench: setup ## Whole train steps beside PyTorch's, where PyTorch is installed
	$(BIN)/python -m benchmarks.bench $(ARGS)

tpu-check: setup ## Compile every train step for TPUs, without one (EXTRA=tpu)
	$(BIN)/python -m benchmarks.tpu_check $(ARGS)

test: $(TEST_SETUP) ## The tests that take seconds
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

torture: setup ## Kill, stop, damage and starve runs, and hold them to undisturbed ones
	$(BIN)/python -m benchmarks.torture $(ARGS)

test-oldest: ## The tests of make test on the oldest versions that are allowed (PYTHON=python3.13)
	$(MAKE) test VENV=$(VENV)-oldest CONSTRAINTS=constraints/oldest.txt

test-slow: $(TEST_SETUP) ## The tests that train for minutes
	$(BIN)/python -m pytest -m slow --timeout 7200 $(ARGS)

mutants: $(TEST_SETUP) ## Faults in the code that the tests notice: a day; ARGS="MODULE --sample 40"
	$(BIN)/python -m pip install --quiet "cosmic-ray>=8.7"
	$(BIN)/python tests/mutants.py $(ARGS)

lint: $(LINT_SETUP) ## Style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error
	$(BIN)/lint-imports

format: $(LINT_SETUP) ## Put the code in form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: setup ## Record the newest versions and the oldest ones, to be tested
	$(BIN)/python -m pip install --quiet uv
	$(foreach version,$(PYTHONS),$(COMPILE) --python-version $(version) \
	  --output-file constraints/python$(version).txt >/dev/null &&) true
	$(COMPILE) --python-version 3.13 --resolution lowest-direct --exclude-newer 2025-10-15 \
	  --only-binary :all: --no-binary promise --output-file constraints/oldest.txt >/dev/null

clean: ## Delete what was made, but not runs/
	rm -rf $(VENV) $(VENV)-oldest build dist .pytest_cache .ruff_cache .import_linter_cache
