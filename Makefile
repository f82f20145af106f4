# make demo | make test | make lint | make docs | make package | make coverage | make bench | make bench-full
# Each makes .venv when it is missing and installs into it once; nothing else on the machine is used or changed.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

# Whatever Python environment is active stays outside (pip's index settings are kept).
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONUSERBASE VIRTUAL_ENV CONDA_PREFIX
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_REQUIRE_VIRTUALENV PYTEST_ADDOPTS PYTEST_PLUGINS MYPYPATH
export PIP_USER := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export PYTHONNOUSERSITE := 1
export KERAS_BACKEND := tensorflow
export TF_CPP_MIN_LOG_LEVEL ?= 3

VENV := .venv
PY := $(VENV)/bin/python
FACTS := setup.cfg pyproject.toml
WORKERS ?= 2
OUT ?= demo_output
ARGS ?=
PYTEST = -q -n $(WORKERS) --dist worksteal --durations=20
# A path in ARGS runs alone: make test ARGS=tests/losses
PARTS = $(if $(filter tests% keras_distill%,$(ARGS)),GIVEN,BATTERIES METHODS OTHERS)
BATTERIES = tests/batteries
METHODS = tests/losses tests/metrics tests/terms
OTHERS = tests keras_distill $(addprefix --ignore=,$(BATTERIES) $(METHODS))
INSTALL = $(PY) -m pip install --quiet --editable

.PHONY: demo test lint docs package coverage bench bench-full clean help

help:
	@sed -n 1,2p Makefile

demo: $(VENV)/.installed-demo
	$(PY) -m keras_distill demo --out $(OUT) $(ARGS)

# A process frees what XLA compiled only when it ends: parts run one after another, each in workers of its own.
test: $(VENV)/.installed-test
	failed=0; $(foreach part,$(PARTS),$(PY) -m pytest $(PYTEST) $($(part)) $(ARGS) || [ $$? = 5 ] || failed=1;) exit $$failed

coverage: $(VENV)/.installed-test
	$(PY) -m pytest $(PYTEST) --cov=keras_distill --cov-report=term:skip-covered $(ARGS)

lint: $(VENV)/.installed-lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m mypy --strict --follow-imports=silent tests/project/consumer.py
	$(PY) -c "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"

# The site: docs/_build/html/index.html, which a browser opens from the disk.
docs: $(VENV)/.installed-docs
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	$(PY) docs/_ext/check_site.py docs/_build/html

# The wheel and the source distribution in dist/, and what they hold.
package: $(VENV)/.installed-release
	rm -rf dist
	$(PY) -m build --outdir dist > dist.log || { cat dist.log; rm dist.log; exit 1; }
	rm dist.log
	$(PY) -m twine check --strict dist/*
	$(PY) .ci/check_package.py dist

bench: $(VENV)/.installed-test
	$(PY) -m benchmarks $(ARGS)

bench-full: $(VENV)/.installed-bench
	$(PY) -m benchmarks --full $(ARGS)

clean:
	rm -rf $(VENV) docs/_build build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache

# An interrupted run leaves no stamp, so the next one does the step again.
$(VENV)/.made: .ci/make_venv
	@bash .ci/make_venv $(VENV)
	@touch $@

$(VENV)/.installed-%: $(VENV)/.made $(FACTS)
	@echo "Installing keras-distill[$*] into $(VENV) (once; a few minutes the first time) ..."
	@$(INSTALL) '.[$*]'
	@touch $@
