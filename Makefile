# Each target sets up what it needs in .venv; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

# jax for what this machine has; `make REQUIREMENTS=requirements-cpu.txt demo` overrides. 0x1ae0 is
# Google's PCI vendor id: /dev/vfio/0 alone is also there where a device is passed through to a guest.
ifneq ($(shell nvidia-smi -L 2>/dev/null | grep '^GPU '),)
REQUIREMENTS ?= requirements.txt
else ifneq ($(and $(wildcard /dev/accel0 /dev/vfio/0),$(shell grep -ls 0x1ae0 /sys/bus/pci/devices/*/vendor)),)
REQUIREMENTS ?= requirements-tpu.txt
else
REQUIREMENTS ?= requirements-cpu.txt
endif

# What was installed, by the requirements' name: others are installed when they are asked for.
INSTALLED := $(VENV)/installed-$(basename $(REQUIREMENTS))

.PHONY: demo test parity slow browser notebook lint docs package audit lock clean

# Trains on drawn scenes with the tiny CLIP in demo/clip, then explains six scenes in pictures.
demo: $(INSTALLED)
	rm -rf runs/demo
	$(BIN)/python run.py --config=configs/shapes.py --workdir=runs/demo
	$(BIN)/python run.py --mode=predict --workdir=runs/demo --top_k=3 \
	  --overlay_dir=runs/demo/overlays demo/scenes
	@echo "pictures of where it looked: runs/demo/overlays"

test: $(VENV)/developed
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n $(WORKERS)

# The same comparisons live, against PyTorch; `make test` needs none. Pinned: other releases can
# bring gigabytes of their own CUDA libraries.
parity: $(VENV)/developed
	$(BIN)/pip install --quiet torch==2.13.0
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n $(WORKERS) -m "torch and not slow"

# Minutes each: real model shapes, tens of thousands of masks, whole trainings.
slow: $(VENV)/developed
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m slow

# The page in the Chromium that is installed; CHROMIUM= names another.
browser: $(VENV)/developed
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m browser tests/serving

# Executes notebooks/quickstart.ipynb.
notebook: $(VENV)/developed
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m slow tests/notebooks

lint: $(VENV)/developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in build/site; a broken link is an error.
docs: $(VENV)/developed
	$(BIN)/pip install --quiet --constraint constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# What is shipped, in use: the wheel, made from the sdist, in an environment that never saw this
# folder; and what it exports in one that has jax, numpy and pillow alone.
package: $(VENV)/developed
	$(BIN)/pip install --quiet --constraint constraints.txt build
	rm -rf dist build/package
	$(BIN)/python -m build > /dev/null
	$(PYTHON) -m venv build/package/installed
	build/package/installed/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	$(PYTHON) -m venv build/package/bare
	build/package/bare/bin/pip install --quiet --constraint constraints.txt jax numpy pillow
	cp examples/run_exported.py demo/scenes/4_blue_ring.png build/package
	cd build/package && export JAX_PLATFORMS=cpu XDG_CACHE_HOME=cache && \
	  installed/bin/fgvpl --help > /dev/null && \
	  installed/bin/fgvpl --config=configs/shapes.py --workdir=run --config.shots=1 --config.epochs=1 && \
	  installed/bin/fgvpl --mode=predict --workdir=run --top_k=1 4_blue_ring.png && \
	  installed/bin/fgvpl --mode=export --workdir=run --output=run.fgvpl && \
	  ! bare/bin/python -c 'import fgvpl_jax' 2> /dev/null && \
	  bare/bin/python run_exported.py run.fgvpl 4_blue_ring.png

# Needs a network; --strict: a package that cannot be looked up is not a clean one.
audit: $(VENV)/developed
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --skip-editable

$(INSTALLED): pyproject.toml constraints.txt $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --requirement $(REQUIREMENTS)
	touch $@

$(VENV)/developed: $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt -e '.[test,lint]'
	touch $@

# Pins for every supported Python and accelerator in one file.
lock:
	printf 'jax[cuda12]\njax[tpu]; sys_platform == "linux"\n' | uv pip compile --quiet --universal \
	  --python-version 3.11 --extra test --extra lint --extra docs --extra tensorflow --extra video --extra serve \
	  --extra wandb --extra fuzz --no-annotate \
	  pyproject.toml - -o constraints.txt

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
