# Every target sets up what it needs; `make demo` and `make test` work in a fresh clone with Python 3.11 and g++.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file of tests runs in one of so many processes, each with one thread (those that wait for each other's threads spin);
# two fit into 8 GiB.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
STAMP := $(VENV)/.memext-installed
KERNELS := $(wildcard shared_core/kernels/*)

.PHONY: install demo lint test test-full test-matrix test-gpu bench bench-gpu clean

install: $(STAMP)

$(STAMP): pyproject.toml setup.py shared_core/_build.py $(KERNELS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[all,dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py --out demo_out

lint: $(STAMP)
	$(BIN)/ruff check .

test: lint
	$(PYTEST) -m "not slow and not gpu"

# Also the slow tests: sanitized kernels, the whole compile matrix, mutations, huge tensors.
test-full: lint
	$(PYTEST) -m "not gpu"

# SpikingJelly 2.0.0 and 0.0.0.0.14, snnTorch 1.0.0 and 0.9.4, one after the other; ROWS="spikingjelly-0.0.0.0.14" for one.
test-matrix: $(STAMP)
	$(BIN)/python tests/matrix/run.py $(ROWS)

# On a machine with a CUDA device, in the active Python environment (PY=...); see benchmarks/README.md.
PY ?= python3
test-gpu:
	$(PY) -m shared_core._build
	$(PY) -m pytest -m gpu tests
	$(PY) tests/gpu/sanitize.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks.cpu

bench-gpu:
	$(PY) -m shared_core._build
	$(PY) -m benchmarks.gpu

clean:
	rm -rf $(VENV) build demo_out shared_core/_lib *.egg-info
