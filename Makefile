# Each target installs what it needs in .venv, with the interpreter that PYTHON names.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

# Picks the jax that suits this machine; `make REQUIREMENTS=requirements-cpu.txt demo` overrides it.
# 0x1ae0 is Google's PCI vendor id: /dev/vfio/0 also exists where any device is passed through to a guest.
ifneq ($(shell nvidia-smi -L 2>/dev/null | grep '^GPU '),)
REQUIREMENTS ?= requirements.txt
else ifneq ($(and $(wildcard /dev/accel0 /dev/vfio/0),$(shell grep -ls 0x1ae0 /sys/bus/pci/devices/*/vendor)),)
REQUIREMENTS ?= requirements-tpu.txt
else
REQUIREMENTS ?= requirements-cpu.txt
endif

# Marks the requirements file that is installed, so that another one is installed when it is chosen.
INSTALLED := $(VENV)/installed-$(basename $(REQUIREMENTS))

.PHONY: demo test further parity slow browser notebook lint docs package audit lock clean

# Trains on drawn scenes with the tiny CLIP in demo/clip, then draws pictures that explain six scenes.
demo: $(INSTALLED)
	rm -rf runs/demo
	$(BIN)/python run.py --config=configs/shapes.py --workdir=runs/demo
	$(BIN)/python run.py --mode=predict --workdir=runs/demo --top_k=3 \
	  --overlay_dir=runs/demo/overlays demo/scenes
	@echo "pictures of where the model looked: runs/demo/overlays"

# The default tests: no network, no PyTorch, no data sets, no weights.
test: $(VENV)/developed
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Runs what `make test` leaves out: further cases of tests, the benchmarks, and the Python of the pages.
further: $(VENV)/developed
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	  -m "further and not slow and not browser"

# Compares live with transformers and OpenCLIP on PyTorch; `make test` compares with stored results
# instead. PyTorch is pinned because other releases can install gigabytes of CUDA libraries;
# OpenCLIP's requirements would install another one.
parity: $(VENV)/developed
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/oracles \
	  torchvision==0.28.0 timm==1.0.31 open-clip-torch==3.3.0
	$(BIN)/pip install --quiet --constraint constraints.txt ftfy==6.3.1
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "torch and not slow"

# Tests that take minutes each: real model shapes, tens of thousands of masks, whole training runs.
slow: $(VENV)/developed
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m slow

# Opens the pages in an installed Chromium; CHROMIUM=PATH chooses another browser. That of
# examples/browser needs npm and a network.
browser: $(VENV)/developed
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m browser tests/serving tests/examples

# Runs notebooks/quickstart.ipynb.
notebook: $(VENV)/developed
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m slow tests/notebooks

# Style, formatting and types.
lint: $(VENV)/developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Builds the documentation site in build/site; a broken link is an error.
docs: $(VENV)/developed
	$(BIN)/pip install --quiet --constraint constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Builds the sdist, and the wheel from it; checks their metadata; uses the wheel in an environment
# without this checkout, and a file that it exports in one with only jax, numpy and pillow.
package: $(VENV)/developed
	$(BIN)/pip install --quiet --constraint constraints.txt build twine
	rm -rf dist build/package
	$(BIN)/python -m build > /dev/null
	$(BIN)/twine check --strict dist/*
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

# Looks for known vulnerabilities; needs a network. With --strict, a package that cannot be looked up
# is an error.
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

# Pins every dependency for all supported Pythons and accelerators in one file; needs uv.
lock:
	printf 'jax[cuda12]\njax[tpu]; sys_platform == "linux"\n' | uv pip compile --quiet --universal \
	  --python-version 3.11 --extra test --extra lint --extra docs --extra tensorflow --extra video --extra serve \
	  --extra siglip --extra onnx --extra wandb --extra fuzz --no-annotate \
	  pyproject.toml - -o constraints.txt

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
