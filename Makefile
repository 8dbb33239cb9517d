# `make demo` and `make test` need only Python 3.11 or newer and a package index.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
# The version installed where there is no torch yet; pyproject.toml tells which ones will do.
TORCH := torch==2.13.0

.PHONY: demo test lint

demo: $(STAMP)
	$(BIN)/hasspec demo

test: lint
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "hasspec needs Python 3.11 or newer, but $(PYTHON) is older or missing;" \
	    "name one with 'make PYTHON=python3.12 ...'" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -c 'import sys, importlib.util as u; sys.exit(u.find_spec("torch") is None)' \
	  || $(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)
