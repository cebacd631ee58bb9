# Each goal makes its own virtual environment first. TORCH picks another build, for example for a GPU.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
READY := $(VENV)/.ready-$(shell echo "$(TORCH)" | cksum | cut -d " " -f 1)

# ComfyUI's checkout, or several: a:b. They stay untouched, what they need goes into virtual environments here.
COMFYUI_PATH ?= $(HOME)/comfy/ComfyUI
FRONTEND := .venv-host-frontend

.PHONY: demo test lint bench host host-venv

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

host: $(READY) $(FRONTEND)
	for checkout in $(subst :, ,$(COMFYUI_PATH)); do \
		$(MAKE) --no-print-directory host-venv CHECKOUT="$$checkout" || exit 1; done
	SV4D2_REQUIRE_HOST=1 COMFYUI_PATH="$(COMFYUI_PATH)" COMFYUI_PYTHON= \
		COMFYUI_FRONTEND_ROOT=$(abspath $(FRONTEND))/comfyui_frontend_package/static \
		$(VENV)/bin/python -m pytest -q -n 2 tests/test_host.py

# torch comes first and is then constrained, so that no other package exchanges it.
$(READY): pyproject.toml requirements.txt tests/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet "$(TORCH)"
	echo "$(TORCH)" > $(VENV)/constraints.txt
	$(VENV)/bin/python -m pip install --quiet -c $(VENV)/constraints.txt -r requirements.txt -r tests/requirements.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps --editable .
	touch $(READY)

$(FRONTEND): | $(READY)
	$(VENV)/bin/python -m pip install --quiet --no-deps --target $(FRONTEND) comfyui-frontend-package

# One environment per version of ComfyUI; tests/test_host.py knows it by its name.
ifdef CHECKOUT
HOST_VENV := .venv-host-$(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' "$(CHECKOUT)/comfyui_version.py")
HOST_READY := $(HOST_VENV)/.ready-$(shell echo "$(TORCH) $(CHECKOUT)" | cksum | cut -d " " -f 1)
host-venv: $(HOST_READY)

# torchvision and torchaudio only fit the torch that they were built for; the tests do without them.
$(HOST_READY): requirements.txt
	test -f "$(CHECKOUT)/main.py" || { echo "No ComfyUI at $(CHECKOUT): make host COMFYUI_PATH=..."; exit 1; }
	$(PYTHON) -m venv $(HOST_VENV)
	$(HOST_VENV)/bin/python -m pip install --quiet "$(TORCH)"
	echo "$(TORCH)" > $(HOST_VENV)/constraints.txt
	grep -vE "^(torch|torchvision|torchaudio|torchsde)([^a-z]|$$)" "$(CHECKOUT)/requirements.txt" > $(HOST_VENV)/comfyui.txt
	$(HOST_VENV)/bin/python -m pip install --quiet -c $(HOST_VENV)/constraints.txt -r $(HOST_VENV)/comfyui.txt \
		-r requirements.txt torchsde requests pytest xatlas
	touch $(HOST_READY)
endif
