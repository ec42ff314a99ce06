# make demo: install, export the small checkpoint, ask it about pictures and a clip.
# make check: lint, format, types and the fast tests; needs no PyTorch, browser or server.
# make coverage: what the fast tests cover of the package.
# make fmt: format the code, and mend what the linter can.
# make bench: export the small checkpoint and measure how fast it answers on this machine.
# make docs: write the generated pages and pictures, and build the documentation's site in site/.
# make test: everything: make check, then the tests of tests/markers.py, which need PyTorch, a browser and servers.
# make clients: other people's clients against ernie-serve (tests/clients), each installed below CLIENTS: minutes, and
#   gigabytes. CLIENT="langchain litellm" runs these; the table goes to CLIENTS/table.md.
# make lock: write the versions that .venv has into constraints.txt, which every installation here takes.
# All create .venv where it is missing; it is brought up to date when pyproject.toml or constraints.txt changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUNDLE := bundles/mini-ernie
CLIENTS := /tmp/clients
CLIENT :=

JOBS := 2
# Slow tests wait for processes and servers now and then: a third worker keeps two cores busy.
SLOW_JOBS := 3
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

# Commands that tests start would compile the package anew each time: 0.4 s of processor time for each ernie-run.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check coverage docs fmt bench test clients lock clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

demo: $(VENV)/.with-export
	mkdir -p $(dir $(BUNDLE))
	$(BIN)/ernie-export examples/mini-ernie -o $(BUNDLE)
	$(BIN)/python -m ernie_export.demo $(BUNDLE)

check: $(VENV)/.with-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --fast -n $(JOBS) --dist loadfile

coverage: $(VENV)/.with-check
	$(BIN)/pytest --fast -n $(JOBS) --dist loadfile --cov

fmt: $(VENV)/.with-check
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.with-export
	mkdir -p $(dir $(BUNDLE))
	$(BIN)/ernie-export examples/mini-ernie -o $(BUNDLE)
	$(BIN)/ernie-bench $(BUNDLE)

docs: $(VENV)/.with-docs
	$(BIN)/python -m tools.docs.generate
	$(BIN)/mkdocs build --strict --quiet

# The longest files begin first (tests/markers.py); xdist would begin with those of most tests, and end with one worker.
# Servers and builds have deadlines, and three workers share two cores: a test that fails beside others decides alone.
# Tests that measure time run after the others, with nothing beside them.
test: $(VENV)/.with-parity check
	$(BIN)/pytest -n $(SLOW_JOBS) --dist loadfile --no-loadscope-reorder -m '(parity or kernels or server or browser or slow) and not alone' \
	  || { [ $$? -eq 1 ] && $(BIN)/pytest --last-failed --last-failed-no-failures none; }
	$(BIN)/pytest -m alone

clients: $(VENV)/.with-parity
	mkdir -p $(dir $(BUNDLE))
	$(BIN)/ernie-export examples/mini-ernie -o $(BUNDLE)
	$(BIN)/python -m tests.clients $(BUNDLE) $(CLIENT) --cache $(CLIENTS) --table $(CLIENTS)/table.md

lock: $(VENV)/.with-parity
	$(BIN)/python tools/lock.py > constraints.txt

clean:
	rm -rf $(VENV) $(BUNDLE)

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Python 3.11 or later is needed, \
	found {v.major}.{v.minor} at {sys.executable}: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.with-export: pyproject.toml constraints.txt | $(VENV)/.made
	@echo 'Installing into $(VENV): what exporting and running need'
	$(INSTALL) --editable '.[export]'
	@touch $@

# Type checking from nothing takes most of a minute: what it found out stays in .mypy_cache.
$(VENV)/.with-check: pyproject.toml constraints.txt | $(VENV)/.made
	@echo 'Installing into $(VENV): what the fast checks need'
	$(INSTALL) --editable '.[export,serve,check]'
	-$(BIN)/mypy >/dev/null
	@touch $@ $(VENV)/.with-export

$(VENV)/.with-docs: pyproject.toml constraints.txt | $(VENV)/.made
	@echo 'Installing into $(VENV): what the documentation needs'
	$(INSTALL) --editable '.[export,serve,docs]'
	@touch $@ $(VENV)/.with-export

# torchvision is only the reference's image processor here, and no build of it goes with a CPU build of torch: it lies
# in a folder of its own, which tools/torchvision_operators.py adds to the path, and nothing else meets it.
# So does tritonserver, of the one wheel that carries it, with its client and the NumPy that its Python backend was
# built for: tests/runtime/triton/conftest.py finds them.
# onnxruntime-gpu would overwrite onnxruntime: tests load its CUDA provider from there, on stand-ins for CUDA made with
# the headers beside it.
# TensorRT's Python API, likewise, is there for the tests of the plugins alone: without its libraries it runs nothing.
$(VENV)/.with-parity: pyproject.toml constraints.txt Makefile | $(VENV)/.made
	@echo 'Installing into $(VENV): PyTorch and the test tools too, which takes minutes'
	$(INSTALL) --editable '.[export,parity,trt-rtx,dev]' torch==2.13.0 transformers==5.23.0
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/torchvision torchvision==0.28.0
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/tritonserver nvidia-pytriton==0.7.0 \
	tritonclient==2.73.0 python-rapidjson==1.25 numpy==1.26.4
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/onnxruntime_gpu onnxruntime-gpu==1.31.1 \
	nvidia-cuda-runtime==13.5.37 nvidia-cuda-crt==13.5.37
	$(BIN)/python tools/tensorrt_api.py $(VENV)/tensorrt_api
	for version in 10.15.1.29 11.1.0.106; do \
	$(BIN)/python tools/tensorrt_api.py $(VENV)/tensorrt_api-$$version $$version || exit 1; done
	@touch $@ $(VENV)/.with-export
