# `make help` lists the targets. Each target first installs the packages that it needs.
# The Python of a new virtual environment. The script runs only if PYTHON is needed, and only once.
PYTHON ?= $(eval PYTHON := $(shell tools/find_python.sh))$(PYTHON)
VENV   ?= .venv
# Optional dependencies (extras) of pyproject.toml, such as tpu. The default is cuda12 if the
# machine has an NVIDIA driver.
EXTRA  ?= $(if $(shell command -v nvidia-smi 2>/dev/null),cuda12)
# Further arguments of the target's command, such as make exp-basic ARGS="--seed 1 --set epochs=2"
ARGS   ?=

BIN         := $(VENV)/bin
CLI         := $(BIN)/cifar-jax
PY_VERSION   = $(shell $(or $(wildcard $(BIN)/python),$(PYTHON)) -c \
                 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# The file of tested package versions for this Python version. Empty if there is no such file.
CONSTRAINTS  = $(wildcard constraints/python$(PY_VERSION).txt)
PYTHONS     := 3.11 3.12 3.13
# uv can choose package versions for a Python version that is not installed.
COMPILE     := $(BIN)/uv pip compile --quiet --upgrade --no-annotate --extra test --extra lint --extra docs --extra browser \
                 --custom-compile-command "make constraints" pyproject.toml
empty :=
comma := ,
extras = $(subst $(empty) ,$(comma),$(strip $(EXTRA) $(1)))
# One marker file for each set of extras, so that `make EXTRA=tpu` installs missing packages.
USER_SETUP := $(VENV)/.installed$(addprefix -,$(extras))
TEST_SETUP := $(VENV)/.installed-$(call extras,test)
BROWSER_SETUP := $(VENV)/.installed-$(call extras,browser docs serve test)
LINT_SETUP := $(VENV)/.installed-$(call extras,lint serve tune)
DOCS_SETUP := $(VENV)/.installed-$(call extras,docs)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo bench tpu-check test test-oldest test-slow test-browser test-dist torture \
        mutants lint format data paper report weights sample-report readme claims dist docs constraints clean

help: ## List the targets
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(TEST_SETUP): TOOLS := test
$(BROWSER_SETUP): TOOLS := browser docs serve test
$(LINT_SETUP): TOOLS := lint serve tune
$(DOCS_SETUP): TOOLS := docs
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "cifar-jax needs Python 3.11 or newer. Try make PYTHON=python3.12 ..." >&2; exit 2; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version): $$(command -v $(PYTHON))"
	@$(PYTHON) -m venv $(VENV) || { rm -f $@; exit 1; }

$(USER_SETUP) $(TEST_SETUP) $(BROWSER_SETUP) $(LINT_SETUP) $(DOCS_SETUP): pyproject.toml \
        $(wildcard constraints/*.txt) | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(addprefix -c ,$(CONSTRAINTS)) \
	  -e '.$(addsuffix ],$(addprefix [,$(call extras,$(TOOLS))))'
	@touch $@

setup: $(USER_SETUP) ## Create .venv and install the package

demo: setup ## Train two networks on the digits data set, and report the results
	$(CLI) train basic --workdir runs/demo/basic --set data.dataset=digits \
	  --set data.validation=0.1 --set epochs=10
	$(CLI) train resnet10-separable --workdir runs/demo/resnet10-separable \
	  --set data.dataset=digits --set data.validation=0.1 --set epochs=4 --set batch_size=32 \
	  --set optimizer.lr=1e-3 --set data.train_images=512 --set data.flip=false
	$(CLI) report runs/demo

exp-%: setup ## Train an experiment on CIFAR-10, such as exp-resnet18-adam
	$(CLI) train $* $(ARGS)

paper: setup ## Train the ten experiments of the paper; resume unfinished runs
	$(CLI) train --paper $(ARGS)
	$(CLI) report

claims: setup ## Test the paper's conclusions: train the missing runs of seeds 0 to 2 (ARGS="--claim 9")
	$(CLI) claims --train $(ARGS)

report: setup ## Compare the runs in runs/ with the paper
	$(CLI) report

weights: setup ## Add the weights of a recorded run to the package (RUN=runs/basic/seed0)
	$(CLI) export $(RUN) --to safetensors --force \
	  --output cifar_jax/weights/$(notdir $(patsubst %/,%,$(dir $(RUN:/=)))).safetensors

sample-report: setup ## Update the sample report in docs/ from the records in results/
	$(CLI) report results --no-pictures --output build/sample-report
	cp build/sample-report/report.html docs/sample-report.html

readme: setup ## Update the tables in the README and docs/paper.md from the records in results/
	$(CLI) report --readme README.md

data: setup ## Download and prepare CIFAR-10
	$(CLI) data prepare

bench: setup ## Time train steps, and compare with PyTorch if it is installed
	$(BIN)/python -m benchmarks.bench $(ARGS)

tpu-check: setup ## Compile train steps of all networks for TPUs, without a TPU (EXTRA=tpu)
	$(BIN)/python -m tools.tpu_check $(ARGS)

test: $(TEST_SETUP) ## Run the tests that take seconds
	$(BIN)/python -m pytest -n 2 -m "not slow and not browser" $(ARGS)

torture: setup ## Kill, stop and damage runs, and compare them with undisturbed runs
	$(BIN)/python -m tools.torture $(ARGS)

test-oldest: ## Run make test with the oldest allowed package versions (PYTHON=python3.13)
	$(MAKE) test VENV=$(VENV)-oldest CONSTRAINTS=constraints/oldest.txt

test-slow: $(TEST_SETUP) ## Run the tests that train for minutes
	$(BIN)/python -m pytest -m slow --timeout 7200 $(ARGS)

test-browser: $(BROWSER_SETUP) ## Run the tests that open the pages and the site in Chromium
	$(BIN)/python -m pytest -m browser $(ARGS)

test-dist: $(TEST_SETUP) ## Install the wheel in a fresh environment and use it
	$(BIN)/python -m pytest tests/test_dist.py $(ARGS)

docs: $(DOCS_SETUP) ## Build the documentation site in build/site/
	$(BIN)/python -m sphinx -q -W --keep-going docs build/site
	@echo "Open build/site/index.html"

dist: setup ## Build the wheel and the source archive in dist/
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build --quiet

mutants: $(TEST_SETUP) ## Count the small faults in the code that the tests notice (ARGS="MODULE --sample 40")
	$(BIN)/python -m pip install --quiet "cosmic-ray>=8.7"
	$(BIN)/python tools/mutants.py $(ARGS)

lint: $(LINT_SETUP) ## Check style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error
	$(BIN)/lint-imports

format: $(LINT_SETUP) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: setup ## Update the newest and oldest package versions in constraints/
	$(BIN)/python -m pip install --quiet uv
	$(foreach version,$(PYTHONS),$(COMPILE) --python-version $(version) \
	  --output-file constraints/python$(version).txt >/dev/null &&) true
	$(COMPILE) --python-version 3.13 --resolution lowest-direct --exclude-newer 2025-10-15 \
	  --exclude-newer-package optuna=2026-12-31 --only-binary :all: --no-binary promise \
	  --output-file constraints/oldest.txt >/dev/null

clean: ## Delete .venv, build results and tool caches, but not runs/
	rm -rf $(VENV) $(VENV)-oldest build dist .pytest_cache .ruff_cache .import_linter_cache
