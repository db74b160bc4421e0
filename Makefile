# make demo      compare the embedded pair, write demo/report.html
# make test      fast tests (5 minutes); make test-all adds the slow ones
# make lint      ruff and mypy
# make notebooks  run them, and keep their figures in them (2 minutes)
# make bench     time and memory, each figure beside its limit (15 minutes on a quiet machine)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

.PHONY: demo test test-all lint bench bench-training bench-patching notebooks install clean

install: $(READY)

# torch comes first and exactly, so that pip does not choose another build while it resolves the rest.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "rlhf-interp needs Python 3.11 or newer; name one: make PYTHON=python3.11 ..."; exit 1; }
	@echo "installing into $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)
	@$(BIN)/interp demo --out demo

test: $(READY)
	$(PYTEST)

test-all: $(READY)
	$(PYTEST) -m "not hub" --durations=15

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/compare.py

bench-training: $(READY)
	$(BIN)/python benchmarks/training.py

bench-patching: $(READY)
	$(BIN)/python benchmarks/patching.py

notebooks: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/jupyter-nbconvert --to notebook --execute --inplace \
	  --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

clean:
	rm -rf $(VENV) demo build dist *.egg-info
