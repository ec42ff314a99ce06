# make demo: install, export the small checkpoint, ask it about pictures and a clip.
# make test: install what parity with PyTorch needs, then every check.
# Both create .venv where it is missing; it is brought up to date when pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUNDLE := bundles/mini-ernie

.PHONY: demo test clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

demo: $(VENV)/.with-export
	mkdir -p $(dir $(BUNDLE))
	$(BIN)/ernie-export examples/mini-ernie -o $(BUNDLE)
	$(BIN)/python -m ernie_export.demo $(BUNDLE)

test: $(VENV)/.with-parity
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

clean:
	rm -rf $(VENV) $(BUNDLE)

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Python 3.11 or later is needed, \
	found {v.major}.{v.minor} at {sys.executable}: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.with-export: pyproject.toml | $(VENV)/.made
	@echo 'Installing into $(VENV): what exporting and running need'
	$(BIN)/python -m pip install --quiet --editable '.[export]'
	@touch $@

# torchvision is only the reference's image processor here, and no build of it goes with a CPU build of torch: it lies
# in a folder of its own, which tools/torchvision_operators.py adds to the path, and nothing else meets it.
# So does tritonserver, of the one wheel that carries it, with its client and the NumPy that its Python backend was
# built for: tests/runtime/triton/conftest.py finds them.
# TensorRT's Python API, likewise, is there for the tests of the plugins alone: without its libraries it runs nothing.
$(VENV)/.with-parity: pyproject.toml | $(VENV)/.made
	@echo 'Installing into $(VENV): PyTorch and the test tools too, which takes minutes'
	$(BIN)/python -m pip install --quiet --editable '.[export,parity,trt-rtx,dev]' torch==2.13.0 transformers==5.23.0
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/torchvision torchvision==0.28.0
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/tritonserver nvidia-pytriton==0.7.0 \
	tritonclient==2.73.0 python-rapidjson==1.25 numpy==1.26.4
	$(BIN)/python tools/tensorrt_api.py $(VENV)/tensorrt_api
	@touch $@ $(VENV)/.with-export
