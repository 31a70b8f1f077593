# Each target sets up what it needs in .venv; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: test parity slow lint lock clean

test: $(VENV)/installed
	$(BIN)/python -m pytest -n $(WORKERS)

# The same comparisons live, against PyTorch; `make test` needs none.
parity: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pytest -n $(WORKERS) -m "torch and not slow"

# Minutes each: real model shapes, tens of thousands of masks, whole trainings.
slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml constraints.txt requirements-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --requirement requirements-cpu.txt --constraint constraints.txt -e '.[test,lint]'
	touch $@

# Pins for every supported Python and accelerator in one file.
lock:
	printf 'jax[cuda12]\njax[tpu]; sys_platform == "linux"\n' | uv pip compile --quiet --universal \
	  --python-version 3.11 --extra test --extra lint --extra tensorflow --extra video --no-annotate \
	  pyproject.toml - -o constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
