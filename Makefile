# Each goal makes its own virtual environment first. TORCH picks another build, for example for a GPU.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
READY := $(VENV)/.ready-$(shell echo "$(TORCH)" | cksum | cut -d " " -f 1)

# ComfyUI's checkout; it stays untouched, what it needs goes into a virtual environment here.
COMFYUI_PATH ?= $(HOME)/comfy/ComfyUI
HOST_VENV := .venv-host
HOST_READY := $(HOST_VENV)/.ready-$(shell echo "$(TORCH) $(COMFYUI_PATH)" | cksum | cut -d " " -f 1)

.PHONY: demo test lint bench host

demo: $(READY)
	$(VENV)/bin/python -m sv4d2_core demo $(DEMO)

test: $(READY)
	$(VENV)/bin/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile $(TESTS)

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python

bench: $(READY)
	$(VENV)/bin/python tests/bench/forward.py $(BENCH)

host: $(READY) $(HOST_READY)
	SV4D2_REQUIRE_HOST=1 COMFYUI_PATH="$(COMFYUI_PATH)" COMFYUI_PYTHON=$(HOST_VENV)/bin/python \
		COMFYUI_FRONTEND_ROOT=$(abspath $(HOST_VENV))/newest/comfyui_frontend_package/static \
		$(VENV)/bin/python -m pytest -q tests/test_host.py

# torch comes first and is then constrained, so that no other package exchanges it.
$(READY): pyproject.toml requirements.txt tests/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet "$(TORCH)"
	echo "$(TORCH)" > $(VENV)/constraints.txt
	$(VENV)/bin/python -m pip install --quiet -c $(VENV)/constraints.txt -r requirements.txt -r tests/requirements.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps --editable .
	touch $(READY)

# torchvision and torchaudio only fit the torch that they were built for; the tests do without them.
$(HOST_READY): requirements.txt
	test -f "$(COMFYUI_PATH)/main.py" || { echo "No ComfyUI at $(COMFYUI_PATH): make host COMFYUI_PATH=..."; exit 1; }
	$(PYTHON) -m venv $(HOST_VENV)
	$(HOST_VENV)/bin/python -m pip install --quiet "$(TORCH)"
	echo "$(TORCH)" > $(HOST_VENV)/constraints.txt
	grep -vE "^(torch|torchvision|torchaudio|torchsde)([^a-z]|$$)" "$(COMFYUI_PATH)/requirements.txt" > $(HOST_VENV)/comfyui.txt
	$(HOST_VENV)/bin/python -m pip install --quiet -c $(HOST_VENV)/constraints.txt -r $(HOST_VENV)/comfyui.txt \
		-r requirements.txt torchsde requests pytest xatlas
	$(HOST_VENV)/bin/python -m pip install --quiet --no-deps --target $(HOST_VENV)/newest comfyui-frontend-package
	touch $(HOST_READY)
