# Each target sets up what it needs, in a virtual environment of its own.
PYTHON ?= python3.11
DEMO := .venv/demo
DEV := .venv/dev
WEIGHTS := .cache/weights
# The CPU build; any other version pulls gigabytes of CUDA.
TORCH := torch==2.13.0

.PHONY: demo test test-all lint enrobe-tiny docs clean

demo: $(DEMO)/ready
	@TTY_COMPATIBLE=1 TERM=dumb $(DEMO)/bin/enrobe fill --model enrobe-tiny "The film was directed <mask> a young man."

test: lint $(WEIGHTS)/ready
	$(DEV)/bin/python -m pytest -q -n 2

test-all: lint $(WEIGHTS)/ready
	$(DEV)/bin/python -m pytest -q -n 2 -m ""

lint: $(DEV)/ready
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy

# The built-in model, from the texts in ../shared/data to the package; an interrupted run goes on.
enrobe-tiny: $(DEV)/ready
	for part in 1 2; do \
	  $(DEV)/bin/enrobe pretrain recipes/enrobe-tiny-$$part.toml --resume || exit; done
	$(DEV)/bin/python scripts/pack_builtin.py runs/enrobe-tiny-2/model enrobe-tiny
	$(DEV)/bin/python scripts/draw_runs.py runs/enrobe-tiny-1 runs/enrobe-tiny-2 \
	  --output docs/enrobe-tiny.png

docs: $(DEV)/ready
	$(DEV)/bin/python scripts/write_docs.py

$(DEMO)/ready: pyproject.toml
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/pip install -q -e .
	touch $@

$(DEV)/ready: pyproject.toml
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/pip install -q $(TORCH)
	$(DEV)/bin/pip install -q -e '.[dev]'
	touch $@

# Real weights for the tests; those that need them skip, and say so, where they cannot be fetched.
$(WEIGHTS)/ready: $(DEV)/ready scripts/fetch_weights.py
	mkdir -p $(WEIGHTS)
	-$(DEV)/bin/python scripts/fetch_weights.py $(WEIGHTS) && touch $@

clean:
	rm -rf .venv .cache build dist
