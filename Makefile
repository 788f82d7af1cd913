# make demo   the main job on real digits: sets up .venv by itself, needs nothing before it
# make test   format, lint, types, tests; likewise
# make test-slow  tests that take minutes: all cases of what `make test` samples;  make test-all  both
# make venv   only sets up .venv
# make clean  removes .venv and everything built
#
# PYTHON=python3.12 chooses the interpreter, JOBS=4 the number of runs at a time in the demo.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
SETUP := setup.cfg pyproject.toml Makefile
# Tests are short and many; two processes fit the smallest machines in use, and the one that is done
# first takes over what is left.
TESTERS ?= 2
# SLOW="slow and not compiled" leaves out what torch has to compile, which takes longest.
SLOW ?= slow
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TESTERS) --dist worksteal

.PHONY: demo test test-slow test-all venv clean python
.DELETE_ON_ERROR:

demo: $(VENV)/.ready
	$(BIN)/clmeta demo --jobs $(JOBS) --output demo

test: $(VENV)/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(TEST)

test-slow: $(VENV)/.ready-dev
	$(TEST) -m "$(SLOW)"

test-all: test test-slow

venv: $(VENV)/.ready-dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "clmeta needs Python 3.10 or newer; $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>&1 || echo missing). Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv" >&2; \
	  exit 1; }

# torch and torchvision are resolved in one go, so that their builds fit each other.
$(VENV)/.ready: $(SETUP) | $(BIN)/python
	@echo "Setting up $(VENV): torch and its libraries may take a few minutes to download."
	$(call install,-e .)
	@touch $@

$(VENV)/.ready-dev: $(SETUP) | $(BIN)/python
	@echo "Setting up $(VENV): torch and its libraries may take a few minutes to download."
	$(call install,-e '.[dev]')
	@touch $@ $(VENV)/.ready

# uv where it is or can be had, for its speed; pip otherwise.
define install
@if UV=$$(command -v uv) && "$$UV" --version >/dev/null 2>&1; then :; \
  elif $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; then UV=$(BIN)/uv; \
  else UV=; fi; \
if [ -n "$$UV" ]; then "$$UV" pip install --python $(BIN)/python $(1); \
else $(BIN)/python -m pip install --disable-pip-version-check $(1); fi
endef

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
