# Everything from a clone: `make demo`, `make test`. Needs Python 3.11 or later, with pip, and make.
# The first target sets up .venv from requirements/dev.txt: pinned versions, checked by hash.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo check test slow slow-tests lint format bench docs serve notebooks lowest requirements clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
OUT ?= out
PIP_FLAGS := -qq --disable-pip-version-check

# Compiled programs are kept between runs: the second `make test` is several times faster.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.1
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES ?= -1
export JAX_PLATFORMS ?= cpu
export JUPYTER_PLATFORM_DIRS := 1
export NO_MKDOCS_2_WARNING := 1

PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

help: ## What there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14

# A virtual environment: $(call environment,folder,requirements file).
define environment
@echo "Setting up $(1) from $(2)"
@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
@for try in 1 2 3; do \
    $(1)/bin/python -m pip install $(PIP_FLAGS) --require-hashes -r $(2) && exit 0; \
    echo "That failed ($$try of 3)"; \
done; exit 1
endef

setup: $(VENV)/.ready ## Set up .venv (the other targets do it when it is missing or out of date)

$(VENV)/.ready: requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxsolve needs Python 3.11 or later: make PYTHON=...")'
	$(call environment,$(VENV),requirements/dev.txt)
	@$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation --no-index -e .
	@touch $@

demo: setup ## The main job on real data, and its report
	@$(BIN)/jaxsolve run hyperparameters --out $(OUT)
	@$(BIN)/jaxsolve run svm-layer --out $(OUT)
	@$(BIN)/jaxsolve report --out $(OUT)

check: lint ## Lint and the quickest tests, under 3 minutes
	$(PYTEST) -q -m fast

test: setup ## All but the slow tests, under 20 minutes
	$(PYTEST) -m "not slow"

slow: setup docs notebooks lowest ## The whole product: documents, notebooks, lowest versions, all tests
	$(PYTEST)

slow-tests: setup ## Those that make test leaves out, but for the variants of the contract
	$(PYTEST) -q -m "slow and not variant"

lint: setup ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup ## Let ruff put the code into form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup ## The site, into site/; any broken link is an error
	$(BIN)/mkdocs build --strict --quiet

serve: setup ## The site, on a local port, while you write
	$(BIN)/mkdocs serve

notebooks: setup ## Convert the notebooks and execute them
	rm -rf build/notebooks && mkdir -p build/notebooks
	$(BIN)/python -m ipykernel install --prefix $(VENV) --name jaxsolve > /dev/null
	cd notebooks && for name in *.py; do \
	    ../$(BIN)/jupytext --quiet --set-kernel jaxsolve --to ipynb --output ../build/notebooks/$${name%.py}.ipynb $$name; \
	done
	$(BIN)/python -m pytest -q -n $(WORKERS) --nbmake --nbmake-timeout=600 -p no:cacheprovider build/notebooks

lowest: .venv-lowest/.ready ## The quick tests with the lowest versions that pyproject.toml allows
	.venv-lowest/bin/python -m pytest -q -n $(WORKERS) -m "not slow" -W default $(LOWEST)

LOWEST := tests/test_imports.py tests/core/test_solve.py tests/core/test_linear.py tests/layers

.venv-lowest/.ready: requirements/lowest.txt
	$(call environment,.venv-lowest,requirements/lowest.txt)
	@touch $@

bench: .venv-bench/.ready ## The benchmarks, peers side by side, into benchmarks/results/
	@for name in $(BENCHMARKS); do .venv-bench/bin/python -m benchmarks.$$name; done

BENCHMARKS ?= $(filter-out side_by_side,$(basename $(notdir $(wildcard benchmarks/[a-z]*.py))))

.venv-bench/.ready: requirements/bench.txt
	$(call environment,.venv-bench,requirements/bench.txt)
	@touch $@

COMPILE := CUSTOM_COMPILE_COMMAND="make requirements" PIP_CONSTRAINT= $(BIN)/pip-compile --quiet --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --strip-extras --allow-unsafe

requirements: setup ## Pin anew, keeping versions that are still allowed (UPGRADE=--upgrade for newer ones)
	$(COMPILE) $(UPGRADE) --extra cli --extra interop --extra cvxpy --extra test --extra dev --extra docs \
	    --output-file requirements/dev.txt pyproject.toml requirements/tools.in
	$(COMPILE) $(UPGRADE) --extra bench --constraint requirements/dev.txt \
	    --output-file requirements/bench.txt pyproject.toml
	$(PYTHON) requirements/lowest.py > requirements/lowest.in
	$(COMPILE) --output-file requirements/lowest.txt requirements/lowest.in
	@for pins in dev bench lowest; do \
	    echo "Do the pins of $$pins install on Python 3.11.0?"; \
	    $(BIN)/python -m pip install $(PIP_FLAGS) --dry-run --no-deps --require-hashes --target $(VENV)/none \
	        --python-version 3.11.0 --only-binary :all: -r requirements/$$pins.txt || exit 1; \
	done

clean: ## Remove what the targets made, environments included
	rm -rf .venv .venv-lowest .venv-bench .jax_cache .pytest_cache .ruff_cache .hypothesis build site out
