# `make course` sets up and builds everything, `make test` checks everything.
# Both reuse what is there: a second run takes seconds.

PYTHON ?= python3
BIN := .venv/bin
# Files of tests run side by side, one process for each core.
PARALLEL := --numprocesses auto --dist loadfile --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where Python is told to keep no compiled modules, each process spends seconds on them.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: course test test-slow bench serve clean help

course: .venv/ready
	@$(BIN)/lmcourse course

test: .venv/ready
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-slow: .venv/ready
	@$(BIN)/python -m pytest -m slow $(PARALLEL)

bench: .venv/ready
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable ".[bench]"
	@$(BIN)/python -m benchmarks

serve: .venv/ready
	@$(BIN)/lmcourse serve

clean:
	rm -rf build .venv

help:
	@echo "make course      set up, build the book, release the homework, grade a sample class"
	@echo "make test        set up, then lint and all tests"
	@echo "make test-slow   the proofs that take longer"
	@echo "make bench       how fast it is beside its peers (half an hour)"
	@echo "make serve       show the built book on this machine"
	@echo "make clean       remove everything that was built or installed"

# The environment is made anew whenever what it should hold has changed.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d. Name another one: make course PYTHON=python3.12" % v)'
	@echo "Setting up .venv (once; a few minutes) ..."
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --upgrade pip
	@$(BIN)/python -m pip install -qq --progress-bar on --no-compile --constraint constraints.txt --editable ".[book,grading,dev]"
	@touch $@
