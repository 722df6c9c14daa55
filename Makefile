# make demo   a dense and a sparse model side by side, on one CPU or on every GPU of this machine
# make test   the tests that fit a quarter of an hour; ARGS="-k name" selects
# make test-slow   the others
# make lint   ruff (lint and format) and pyright
# make clean  remove caches and build leftovers; the virtual environment and runs/ stay, and so do
#             the kernels that are built beside their C

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell grep -E '^torch==' constraints.txt)
ARGS ?=

# DeepSpeed finds ninja on PATH, and its workers find the tools of this environment.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test test-slow lint clean
.DEFAULT_GOAL := test

# torch goes first and by its exact version: a range would fetch the newest CUDA build, and the
# packages after it then find their requirement satisfied. The stamp is the last thing written, so
# an interrupted installation is taken up again.
$(STAMP): pyproject.toml constraints.txt $(wildcard sparsecl/*/*.c)
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/sparsecl demo

# One thread per process: tests that start several gloo ranks would fight for the cores otherwise.
# Two workers: ranks wait for one another more than half of the time. A file stays with one worker.
# The last lines tell which tests took longest.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=25

test: $(STAMP)
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(STAMP)
	$(PYTEST) -m slow $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
