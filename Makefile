# Everything runs in .venv, made from pyproject.toml and the tested versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
INPUTS := pyproject.toml constraints.txt

.PHONY: demo test test-slow style quality clean

demo: .venv/.installed
	$(BIN)/python scripts/demo.py

# One thread a process: the suite runs file by file on two processes, and two jobs must not fight over two cores.
test: .venv/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: .venv/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 $(ARGS)

style: .venv/.installed-dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

quality: .venv/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

.venv/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'hf_papers needs Python 3.11 or newer: make PYTHON=python3.12 …')"
	$(PYTHON) -m venv .venv

# torch alone and first, at the tested version: a later resolver run must not trade it for another build.
.venv/.torch: .venv/bin/python constraints.txt
	$(BIN)/python -m pip install -q "$$(grep '^torch==' constraints.txt)"
	touch $@

.venv/.installed: .venv/.torch $(INPUTS)
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

.venv/.installed-test: .venv/.torch $(INPUTS)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test]"
	touch $@ .venv/.installed

.venv/.installed-dev: .venv/.torch $(INPUTS)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@ .venv/.installed .venv/.installed-test

clean:
	rm -rf .venv build dist *.egg-info
