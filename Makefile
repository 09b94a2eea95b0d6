# Shoal starts here. A target that needs packages installs them into .venv once, later starts need no network.
#   make demo ARGS="--exit --json out.json"     make test ARGS="tests/protocol -x"
#   make bench ONLY=training_step JSON=out.json make test PYTHON=python3.13 VENV=.venv313

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
ARGS ?=
ONLY ?=
JSON ?=
COVERAGE ?=

# Each must be covered by its own tests, so each is judged by itself.
COVERED = protocol/* coordinator/training/engine.py coordinator/strategies/*

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-arm test-arm-boot check bench soak docs oracle clean moved

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-16s%s\n", $$1, $$2}'

demo: $(VENV)/installed-demo  ## a coordinator and a small fleet on this machine, in the browser
	@$(BIN)/shoal demo $(ARGS)

test: $(VENV)/installed-dev  ## the test suite; COVERAGE=1 also measures and judges coverage
	@$(BIN)/python -m pytest -n auto --dist worksteal $(if $(COVERAGE),--cov --cov-report=) $(ARGS)
ifneq ($(COVERAGE),)
	@set -f; for part in $(COVERED); do \
	  echo "Coverage of $$part, at least 95 %:"; \
	  $(BIN)/python -m coverage report --include="$$part" --fail-under=95 || exit 1; \
	done
endif

test-arm: $(VENV)/installed-dev  ## training steps on aarch64 and armhf below qemu-user; needs root, minutes the first time
	@$(BIN)/python -m tests.arm $(ARGS)

test-arm-boot: $(VENV)/installed-dev  ## a blank card boots in QEMU, enrols and trains; needs root, long the first time
	@$(BIN)/python -m tests.arm.boot $(ARGS)

check: $(VENV)/installed-dev  ## lint, types, import rules
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy
	@$(BIN)/lint-imports

bench: $(VENV)/installed-oracle  ## the measurements of docs/benchmarks.md; ONLY= one of them, JSON= a file for the rows
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only "$(ONLY)") $(if $(JSON),--json "$(JSON)") $(ARGS)

soak: $(VENV)/installed-dev  ## the long tests with their full counts
	@SHOAL_SOAK=1 $(BIN)/python -m pytest -m soak $(ARGS)

docs: $(VENV)/installed-dev  ## draw the diagram of docs/database.md anew, from the tables as they are
	@$(BIN)/python -m coordinator.store.diagram docs/database.md

oracle: $(VENV)/installed-oracle  ## add PyTorch, against which training graphs are tested and measured

clean:  ## remove everything make, tests and tools have made
	rm -rf .venv .venv313 .axe build dist .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment knows its folder by name; one that was moved or copied along is made anew.
MOVED := $(shell test ! -e $(VENV)/folder || test "`cat $(VENV)/folder`" = "`pwd -P`" || echo moved)

$(VENV)/installed-demo: pyproject.toml constraints.txt $(MOVED)
	@$(call install,demo)
	@touch $(VENV)/installed-demo

$(VENV)/installed-dev: pyproject.toml constraints.txt $(MOVED)
	@$(call install,dev)
	@touch $(VENV)/installed-demo $(VENV)/installed-dev

$(VENV)/installed-oracle: pyproject.toml constraints.txt $(MOVED)
	@$(call install,dev$(comma)oracle)
	@touch $(VENV)/installed-demo $(VENV)/installed-dev $(VENV)/installed-oracle

comma := ,

define install
set -e; \
test -e $(VENV)/folder -a -z "$(MOVED)" || { $(environment); }; \
echo "Installing Shoal [$(1)] into $(VENV) (once, about a minute) ..."; \
$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt -e '.[$(1)]'
endef

define environment
command -v "$(PYTHON)" >/dev/null || { \
  echo "$(PYTHON) was not found: Shoal needs Python 3.11 or newer (make PYTHON=/path/to/python3)." >&2; exit 1; }; \
"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
  echo "Shoal needs Python 3.11 or newer, but $(PYTHON) is `"$(PYTHON)" -V 2>&1`: name another one, make PYTHON=python3.11." >&2; exit 1; }; \
"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
  echo "$(PYTHON) cannot make virtual environments: install the package python3-venv (apt-get install python3-venv)." >&2; exit 1; }; \
"$(PYTHON)" -m venv $(if $(MOVED),--clear) $(VENV); \
pwd -P > $(VENV)/folder
endef
