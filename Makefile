# Two commands do everything on a machine with git, make and Python >= 3.11:
#   make quickstart   set up .venv, then train on handwritten digits and look at the result
#   make test         the same set-up, then all tests
# On a machine with a CUDA device:
#   make test-gpu     the tests that need it
# PYTHON=python3.12 make ... chooses the interpreter that .venv is made with.

PYTHON ?= python3
BIN := .venv/bin
# uv does not read pip's settings; hand it the local wheel folders that pip knows, if there are any.
LINKS = $${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-$$($(BIN)/pip config get global.find-links 2>/dev/null || true)}}
INSTALL = UV_FIND_LINKS="$(LINKS)" $(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt
# Without byte code every process compiles every library again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help quickstart test test-faults test-fuzz test-kernels test-gpu check format clean
help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

.venv/base.stamp: Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "illama needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install -q "uv>=0.9"
	@touch $@

.venv/run.stamp: .venv/base.stamp pyproject.toml constraints.txt
	@echo "Installing illama and what it needs into .venv (about a minute, more where torch has to be downloaded)"
	@$(INSTALL) -e ".[timm,data]"
	@touch $@

.venv/dev.stamp: .venv/run.stamp
	@$(INSTALL) -e ".[dev]"
	@touch $@

quickstart: .venv/run.stamp
	$(BIN)/illama quickstart

# Three at a time on two cores: many tests wait for processes that they kill.
test: .venv/dev.stamp
	$(BIN)/python -m pytest -n 3 --dist worksteal

# Kills, signals, full disks, damaged files, processes that are lost or were given different things: the short form is part of `make test`, this is the long one.
test-faults: .venv/dev.stamp
	$(BIN)/python -m pytest -n 2 -rP -m "faults or not faults" $(addprefix tests/end_to_end/test_,kill.py faults.py \
	  ranks.py signals.py process_ends.py)
	$(BIN)/python -m pytest -n 2 -m faults tests/reproduce tests/training tests/models tests/data

# Damaged inputs of every kind, 10,000 of them (CASES=1000 for fewer); ILLAMA_FUZZ_SEED=random for others than always.
# A slice of it is part of `make test`. What fails is kept in build/fuzz/failures, with the command that repeats it.
CASES ?= 10000
test-fuzz: .venv/dev.stamp
	$(BIN)/python -m tests.fuzz --cases $(CASES)

# Triton is 0.7 GB, so only its own tests install it: in its interpreter on any CPU, then compiled for a GPU that need not
# be there.
.venv/kernels.stamp: .venv/dev.stamp
	@$(INSTALL) -e ".[kernels]"
	@touch $@

test-kernels: .venv/kernels.stamp
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 tests/attention/test_triton.py
	env -u TRITON_INTERPRET $(BIN)/python -m pytest -n 2 tests/attention/test_triton_compiles.py

# What needs a CUDA device: kernels, training, graphs, memory. Without one it installs nothing and says so.
test-gpu: .venv/dev.stamp
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	  $(MAKE) .venv/kernels.stamp && \
	  env -u TRITON_INTERPRET $(BIN)/python -m pytest -n 4 -W ignore::UserWarning -m "gpu or kernels"; \
	else echo "make test-gpu: no CUDA device here, so there is nothing to run"; fi

check: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build dist
