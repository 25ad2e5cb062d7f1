# `make demo` and `make test` need nothing but a Python with venv and pip; `make help` lists the rest.

PYTHON   ?= python3
# More arguments for every pip call, such as an index with CPU builds of torch.
PIP_ARGS ?=
# Arguments for `bnkit demo` and for pytest.
ARGS     ?=
WORKERS  ?= 2

VENV   := .venv
FVENV  := .venv-frameworks
# Two workers share two cores: one thread each, or they fight.
SINGLE := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1
GROUPS := --group test --group lint --group docs

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test lint docs venv venv-frameworks test-frameworks clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-17s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.runtime ## train twin networks, write bnkit-demo/report.html
	$(VENV)/bin/bnkit demo $(ARGS)

test: $(VENV)/.develop ## the test suite, documented examples included
	$(SINGLE) $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(VENV)/.develop ## style, format, direction of imports, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

docs: $(VENV)/.develop ## docs/_build/html/index.html; a warning is an error
	$(VENV)/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

venv: $(VENV)/.develop ## the environment alone

test-frameworks: $(FVENV)/.installed ## against TensorFlow, Flax, Equinox, Haiku and ONNX Runtime
	$(SINGLE) $(FVENV)/bin/python -m pytest -m frameworks tests/frameworks $(ARGS)

venv-frameworks: $(FVENV)/.installed ## the environment of test-frameworks alone (about 4 GB)

clean: ## remove what was built, keep the environments
	rm -rf docs/_build build dist bnkit-demo bnkit-lab \
	  .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the environments too
	rm -rf $(VENV) $(FVENV)

# What runs the package; the development groups replace it, so either stamp is enough for `demo`.
# The demo can do without onnx, so a machine for which there is no wheel of it does not stop it.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install $(PIP_ARGS) -c constraints.txt --only-binary onnx -e . onnx || \
	  $(VENV)/bin/python -m pip install $(PIP_ARGS) -c constraints.txt -e .
	@touch $@

$(VENV)/.develop: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call modern-pip,$(VENV))
	$(VENV)/bin/python -m pip install $(PIP_ARGS) -c constraints.txt -e . $(GROUPS)
	@touch $(VENV)/.runtime $@

$(FVENV)/.installed: pyproject.toml constraints.txt | $(FVENV)/bin/python
	$(call modern-pip,$(FVENV))
	$(FVENV)/bin/python -m pip install $(PIP_ARGS) -c constraints.txt -e . --group test --group frameworks
	@touch $@

$(VENV)/bin/python $(FVENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON): not found. Install Python 3.11 or newer, or name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "bnkit needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V). Name another one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv or pip. Debian and Ubuntu: apt install python3-venv. Or name another: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(@D:/bin=)

# pip knows dependency groups from 25.1 on.
define modern-pip
$(1)/bin/python -m pip install -q $(PIP_ARGS) -c constraints.txt 'pip>=25.1'
endef
