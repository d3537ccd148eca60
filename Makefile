# Every task of the repository. CI calls nothing else.

PYTHON ?= python3
TORCH ?= torch==2.13.0
PORT ?= 8000
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := src tests tools

# Until a trained default model ships: a small random one, made once.
RANDOM_MODEL := .cache/random-model
MODEL ?= $(RANDOM_MODEL)

.DEFAULT_GOAL := help
.PHONY: help install serve demo test prove lint format bench test-gpu clean

help:
	@echo "make install    set up $(VENV)"
	@echo "make serve      serve the default model on port $(PORT) (MODEL=directory-or-name, ARGS=flags)"
	@echo "make demo       complete one prompt with the default model"
	@echo "make test       the tests of every change: pure, cpu, e2e"
	@echo "make prove      the long proofs at full size (hours)"
	@echo "make lint       style, types, import contract, sizes"
	@echo "make format     let ruff rewrite what it can"
	@echo "make bench      time the engine's own work"
	@echo "make test-gpu   the tests that need a GPU"
	@echo "make clean      remove $(VENV) and .cache"

install: $(STAMP)

# torch first and by itself, so that no other requirement chooses its build.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

ifeq ($(MODEL),$(RANDOM_MODEL))
MODEL_READY := $(RANDOM_MODEL)/config.json
endif

$(RANDOM_MODEL)/config.json: $(wildcard src/mimo_engine/cli/*_files.py) src/mimo_engine/cli/random_checkpoint.py | $(STAMP)
	rm -rf $(RANDOM_MODEL)
	$(BIN)/mimo-engine random-checkpoint $(RANDOM_MODEL)

serve: $(STAMP) $(MODEL_READY)
	$(BIN)/mimo-engine serve $(MODEL) --port $(PORT) $(ARGS)

demo: $(STAMP) $(MODEL_READY)
	$(BIN)/mimo-engine generate $(MODEL) --prompt "Once upon a time" $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 $(ARGS)

prove: $(STAMP)
	$(BIN)/python tools/prove.py $(ARGS)

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -q tests/gpu $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/check_sizes.py

format: $(STAMP)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: $(STAMP) $(MODEL_READY)
	$(BIN)/python -m mimo_engine.bench $(MODEL)

clean:
	rm -rf $(VENV) .cache
