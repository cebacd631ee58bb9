# Each goal makes its own virtual environment first. TORCH picks another build, for example for a GPU.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
READY := $(VENV)/.ready-$(shell echo "$(TORCH)" | cksum | cut -d " " -f 1)

.PHONY: demo test lint bench

demo: $(READY)
	$(VENV)/bin/python -m sv4d2_core demo $(DEMO)

test: $(READY)
	$(VENV)/bin/python -m pytest -q $(TESTS)

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python

bench: $(READY)
	$(VENV)/bin/python tests/bench/forward.py $(BENCH)

# torch comes first and is then constrained, so that no other package exchanges it.
$(READY): pyproject.toml requirements.txt tests/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet "$(TORCH)"
	echo "$(TORCH)" > $(VENV)/constraints.txt
	$(VENV)/bin/python -m pip install --quiet -c $(VENV)/constraints.txt -r requirements.txt -r tests/requirements.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps --editable .
	touch $(READY)
