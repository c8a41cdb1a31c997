# Every target sets itself up: `python3` with venv is all that has to be there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
# The frameworks bring many packages: they get an environment of their own.
FRAMEWORKS ?= .venv-frameworks
FT ?= .venv-ft
OUT ?= runs/demo
# One math thread a test process: two of them share the cores instead of fighting for them.
JOBS ?= 2

.PHONY: help demo test test-distributed test-frameworks test-ft lint types bench clean
help:
	@echo "make demo   averaged against plain weights on real images, five seeds, compared (at most two minutes)"
	@echo "make test   every test"
	@echo "make test-distributed  minutes of trainings whose processes are killed"
	@echo "make test-frameworks  inside Lightning, Transformers, Accelerate and timm, in an environment of its own"
	@echo "make test-ft  replica groups that come and go, under torchft, in an environment of its own"
	@echo "make lint   style"
	@echo "make types  types"
	@echo "make bench  the benchmarks, as ratios to the best peers and to the physical limit"
	@echo "make clean  remove the environment and caches; runs/ stays"

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lookaround needs Python 3.11 or newer, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train,text,dev]'
	touch $@

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train,text,dev,bench]'
	touch $@

# At a constant learning rate, where averages show what they do; the last method is SGD with its rate brought down, which needs no average.
DEMO := sgd:schedule=constant ema:schedule=constant,decay=0.99 lookahead:schedule=constant lookaround:schedule=constant sgd
demo: $(STAMP)
	$(BIN)/lookaround train --data digits --epochs 5 --seeds 0 1 2 3 4 --plain --methods $(DEMO) --out $(OUT) --resume
	$(BIN)/lookaround compare $(OUT) --baseline sgd:schedule=constant --metrics top1 nll --out $(OUT)-compared

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS)

test-distributed: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m distributed tests/distributed

$(FRAMEWORKS)/.installed: pyproject.toml
	test -x $(FRAMEWORKS)/bin/python || $(PYTHON) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[train,dev,frameworks]'
	touch $@

test-frameworks: $(FRAMEWORKS)/.installed
	OMP_NUM_THREADS=1 $(FRAMEWORKS)/bin/python -m pytest -q tests/frameworks

$(FT)/.installed: pyproject.toml
	test -x $(FT)/bin/python || $(PYTHON) -m venv $(FT)
	$(FT)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[train,dev,ft]'
	touch $@

test-ft: $(FT)/.installed
	OMP_NUM_THREADS=1 $(FT)/bin/python -m pytest -q -m ft tests/distributed

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

bench: $(BENCH_STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) $(FRAMEWORKS) $(FT) build .mypy_cache .ruff_cache .hypothesis src/*.egg-info
