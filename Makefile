# Each target sets up what it needs in .venv, and sets it up again when pyproject.toml or the native
# sources change.

PYTHON ?= python3
# For the CPU build alone: make TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'
TORCH ?= torch==2.13.0

# TensorRT's types, to check against. By itself, as it asks for TensorRT: gigabytes from elsewhere.
STUBS := tensorrt-stubs>=10.13,<10.14

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input

# A process for each CPU, up to four. Each begins with a part of the files, as a file's tests share
# what they make; the first that is done takes over half of what another has left.
TEST_OPTIONS ?= -n logical --maxprocesses 4 --dist worksteal
# Left out of `make test`; how much hypothesis draws is in tests/conftest.py.
QUICK := -m 'not slow' --hypothesis-profile=quick

.PHONY: help demo test test-all lint types docs openapi clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@echo "make demo      compile the demo model, and run it with and without a memory budget"
	@echo "make test      the tests that every change must pass, in a few minutes"
	@echo "make test-all  all tests, in up to 20 minutes"
	@echo "make lint      ruff: rules and format"
	@echo "make types     mypy"
	@echo "make docs      the documentation, to build/docs/index.html"
	@echo "make openapi   write server/openapi.json, the description of the HTTP API"
	@echo "make clean     remove what was built, but not $(VENV)"

NATIVE := setup.py $(wildcard runtime/native/*.cpp runtime/native/*.h runtime/native/*.inl)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch goes first, so that TORCH chooses its version and its index.
$(VENV)/.compile: pyproject.toml $(NATIVE) | $(BIN)/python
	$(PIP_INSTALL) $(TORCH)
	$(PIP_INSTALL) -e '.[cpu,compile]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(NATIVE) | $(BIN)/python
	$(PIP_INSTALL) $(TORCH)
	$(PIP_INSTALL) -e '.[dev]'
	$(PIP_INSTALL) --no-deps '$(STUBS)'
	@touch $(VENV)/.compile $(VENV)/.docs $@

# No torch: the command line and the runtime, whose documentation is made of the code, need none.
$(VENV)/.docs: pyproject.toml $(NATIVE) | $(BIN)/python
	$(PIP_INSTALL) -e '.[docs]'
	@touch $@

demo: $(VENV)/.compile
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev
	$(BIN)/pytest $(QUICK) $(TEST_OPTIONS)

test-all: $(VENV)/.dev
	$(BIN)/pytest $(TEST_OPTIONS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy names a package after its folder, and a clone may have any name: give it a folder in which
# the repository is called pocketmoe.
types: $(VENV)/.dev
	@mkdir -p $(VENV)/types && ln -sfn ../.. $(VENV)/types/pocketmoe
	cd $(VENV)/types && ../bin/mypy --config-file pocketmoe/pyproject.toml -p pocketmoe

# -W: a warning, such as a link that leads nowhere, is an error. -E: what the code says may have
# changed without a page having done so.
docs: $(VENV)/.docs
	$(BIN)/sphinx-build -q -E -W --keep-going -n -b html docs build/docs
	@echo "build/docs/index.html"

openapi: $(VENV)/.dev
	$(BIN)/python -m pocketmoe.server.openapi

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis $(VENV)/types
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
