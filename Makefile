# Every task of the repository. CI calls nothing else.

PYTHON ?= python3
TORCH ?= torch==2.13.0
# Installed where torch's build brings none; and the one whose code for GPUs is read.
TRITON ?= triton==3.9.0; platform_system == "Linux"
SASS_TRITON ?= triton==3.6.0
# Gives up soon where there is no network.
APT := -q -o Acquire::Retries=1 -o Acquire::http::Timeout=15
# Written by test-browser.
SCREENSHOT ?= docs/playground.png
PORT ?= 8000
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BROWSER_STAMP := $(VENV)/.installed-browser
SASS_VENV := .venv-sass
SASS_STAMP := $(SASS_VENV)/.installed
SOURCES := src tests tools

# The small trained model that comes with the package.
MODEL ?= demo
# Benches time shapes, not answers: a small random model, made once.
RANDOM_MODEL := .cache/random-model

# Two runs of one training, each short enough for a machine that is lent by the ten minutes; the
# second looks longer at what the first left open. Workers: processes that make batches.
WORKERS ?= 14
DEMO_RUNS := .cache/demo
MIX_1 := text/tool_call=0.8,text/tool_result=0.4,text/count=1.3,text/word_problems=1.2,$\
text/needle=1.3,text/sums=1.2,image/colour=0.4,image/shape=1.3,image/digits=1.8,image/word=1.5,$\
image/position=0.8,video/motion=0.8,video/order=0.8,video/flashes=0.7,video/first=0.6,$\
video/agree=1.2,audio/pitch=0.7,audio/beeps=1.2,audio/spoken_digits=1.4,audio/spoken_words=1.3
MIX_2 := text/sums=1.4,text/tool_result=0.6,text/count=1.2,text/needle=1.3,image/colour=0.5,$\
image/shape=1.5,image/count=1.4,image/digits=2,image/word=1.4,image/position=0.5,$\
video/motion=0.8,video/order=0.8,video/flashes=0.7,video/first=0.6,video/agree=1.1,$\
audio/pitch=0.6,audio/beeps=0.8,audio/spoken_words=0.9

.DEFAULT_GOAL := help
.PHONY: help install serve demo test prove lint format bench test-gpu browser test-browser \
	check-sass memcheck clean

help:
	@echo "make install    set up $(VENV)"
	@echo "make serve      serve the default model on port $(PORT) (MODEL=directory-or-name, ARGS=flags)"
	@echo "make demo       train the default model anew, on a GPU, into $(DEMO_RUNS)"
	@echo "make test       the tests of every change: pure, cpu, kernels, e2e"
	@echo "make prove      the long proofs at full size (hours)"
	@echo "make lint       style, types, import contract, sizes"
	@echo "make format     let ruff rewrite what it can"
	@echo "make bench      time the engine's own work"
	@echo "make test-gpu   the tests that need a GPU"
	@echo "make test-browser the playground in Chromium, and its picture for the README"
	@echo "make check-sass the kernels' machine code for Hopper, without a GPU (ARGS=parts of names)"
	@echo "make memcheck   small cases of all kernels on a GPU under compute-sanitizer"
	@echo "make clean      remove $(VENV), $(SASS_VENV) and .cache"

install: $(STAMP)

# torch first and by itself, so that no other requirement chooses its build.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip show --quiet triton || $(BIN)/python -m pip install '$(TRITON)'
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

$(RANDOM_MODEL)/config.json: $(wildcard src/mimo_engine/cli/*_files.py) src/mimo_engine/cli/random_checkpoint.py | $(STAMP)
	rm -rf $(RANDOM_MODEL)
	$(BIN)/mimo-engine random-checkpoint $(RANDOM_MODEL)

serve: $(STAMP)
	$(BIN)/mimo-engine serve $(MODEL) --port $(PORT) $(ARGS)

demo: $(STAMP)
	$(BIN)/python -m mimo_engine.demo train --minutes 8.6 --total-minutes 17 --workers $(WORKERS) \
		--mix $(MIX_1) --banks $(DEMO_RUNS)/banks --out $(DEMO_RUNS)/run1
	$(BIN)/python -m mimo_engine.demo train --minutes 8.4 --total-minutes 17 --workers $(WORKERS) \
		--mix $(MIX_2) --banks $(DEMO_RUNS)/banks --out $(DEMO_RUNS)/run2 --resume $(DEMO_RUNS)/run1
	rm -rf $(DEMO_RUNS)/data
	$(BIN)/python -m mimo_engine.demo export --run $(DEMO_RUNS)/run2 --out $(DEMO_RUNS)/data

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 $(ARGS)

prove: $(STAMP)
	$(BIN)/python tools/prove.py $(ARGS)

test-gpu: $(STAMP)
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -q tests/gpu tests/kernels $(ARGS)

# As root on Debian Chromium is installed too; elsewhere that is for whoever owns the machine.
browser: $(BROWSER_STAMP)
	@if { command -v chromedriver && { command -v chromium || command -v chromium-browser || command -v google-chrome; }; } >/dev/null; then \
		:; \
	elif command -v apt-get >/dev/null && test "$$(id -u)" = 0; then \
		apt-get $(APT) update && \
		DEBIAN_FRONTEND=noninteractive apt-get $(APT) install --yes --no-install-recommends chromium chromium-driver; \
	else \
		echo "Chromium and chromedriver are needed on the PATH. On Debian: apt-get install chromium chromium-driver" >&2; \
		exit 1; \
	fi

$(BROWSER_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[browser]'
	@touch $@

test-browser: browser
	$(BIN)/python -m pytest -q -n 2 tests/browser --screenshot $(SCREENSHOT) $(ARGS)

# An environment of its own: the tests' Triton is another, and nothing else of ours is needed.
$(SASS_STAMP): Makefile
	test -x $(SASS_VENV)/bin/python || $(PYTHON) -m venv $(SASS_VENV)
	$(SASS_VENV)/bin/python -m pip install $(TORCH)
	$(SASS_VENV)/bin/python -m pip install numpy '$(SASS_TRITON)'
	@touch $@

check-sass: $(SASS_STAMP)
	PYTHONPATH=src TRITON_CACHE_DIR=.cache/sass $(SASS_VENV)/bin/python tools/check_sass.py $(ARGS)

memcheck: $(STAMP)
	$(BIN)/python tools/memcheck.py $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/check_sizes.py

format: $(STAMP)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: $(STAMP) $(RANDOM_MODEL)/config.json
	$(BIN)/python -m mimo_engine.bench $(RANDOM_MODEL)

clean:
	rm -rf $(VENV) $(SASS_VENV) .cache
