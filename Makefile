# Everything runs in a virtual environment of its own, .venv; nothing else needs to be installed but Python 3.11+ and make.
PYTHON ?= python3
# The CPU build of PyTorch keeps a machine without a GPU from downloading CUDA. TORCH= (empty) keeps what is in .venv;
# TORCH=torch takes the newest; TORCH=torch==2.11.0 another release.
TORCH ?= torch==2.13.0
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: demo test test-all test-fast lint types bench-attention bench-cpu bench-host bench-jacobian bench-planner bench-training clean

demo: $(VENV)/.installed
	$(RUN) -m torch_jvpvjp demo

test: $(VENV)/.installed lint types
	$(RUN) -m pytest -n 2 --dist worksteal --ignore tests/kernels/test_aot.py -m "not exhaustive"
	$(RUN) -m pytest tests/kernels/test_aot.py -m "not exhaustive"  # two processes of its own; prints its table
	TRITON_INTERPRET=1 $(RUN) -m pytest -n 2 --dist worksteal tests/kernels tests/ops -m "not compiled and not exhaustive"

test-all: test  # what CI has no time for as well
	$(RUN) -m pytest -n 2 --dist worksteal --ignore tests/kernels/test_aot.py -m exhaustive
	$(RUN) -m pytest tests/kernels/test_aot.py -m exhaustive
	TRITON_INTERPRET=1 $(RUN) -m pytest -n 2 --dist worksteal tests/kernels tests/ops -m "exhaustive and not compiled"

test-fast: $(VENV)/.installed
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow and not exhaustive"

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(VENV)/.installed
	$(RUN) -m basedpyright --pythonpath $(RUN)

bench-cpu: bench-host bench-planner bench-jacobian

bench-attention: $(VENV)/.installed
	$(RUN) benchmarks/bench_attention.py --device cpu

bench-host: $(VENV)/.installed
	$(RUN) benchmarks/bench_host.py

bench-planner: $(VENV)/.installed
	$(RUN) benchmarks/bench_planner.py

bench-jacobian: $(VENV)/.installed  # compared with JAX too if it is installed: pip install ".[bench]"
	$(RUN) benchmarks/bench_jacobian.py --device cpu --strategies --memory

bench-training: $(VENV)/.installed
	$(RUN) benchmarks/bench_training.py --device cpu

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(RUN) -m pip install --quiet "$(TORCH)")
	$(RUN) -m pip install --quiet --editable ".[test,demo]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info demo_output
