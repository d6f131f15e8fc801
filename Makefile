# SPDX-License-Identifier: Apache-2.0
# make            set up the environment in .venv
# make demo       classification: real images -> train -> test -> re-parameterize -> test again -> pictures
# make demo-seg   the same for segmentation
# make demo-det   the same for detection
# make demo-int8  int8 quantization on real images, with a table: accuracy, size, latency
# make demo-convs a ResNet with plain and with re-parameterizable convolutions, with a table: accuracy, size, speed
# make demo-prune two small networks, each pruned by all methods of compression, with a table: accuracy, size, speed
# make test       the whole test suite, as many tests at a time as there are cores; the slowest are listed at the end
# make test-fast  the same for what is not marked slow
# make lint       format and lint checks
# make docs       the site, in docs/_build/html; warnings are errors
# make dist       source distribution and wheel, in dist/; dev/check_dist.py installs and tries them
# Overrides: PYTHON=python3 TORCH=x.y.z VENV=.venv
# STACK=onedl takes the packages that OneDL maintains instead of OpenMMLab's; its environment is .venv-onedl
SHELL := /bin/bash
STACK ?= openmmlab
OTHER := $(if $(filter-out openmmlab,$(STACK)),-$(STACK))
VENV ?= .venv$(OTHER)
PYTHON ?= python3
TORCH ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed$(OTHER)$(if $(TORCH),-torch-$(TORCH))
# One file of tests after the other goes to whichever process is free: its tests share what takes time to make.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder
# glibc keeps the memory of a tensor for the next one instead of giving it back to the system: a twentieth of the time.
TEST := MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 $(BIN)/python -m pytest $(PARALLEL)

.PHONY: env demo test test-fast lint docs dist clean
env: $(STAMP)

$(STAMP): setup.py tools/setup_env.sh tools/build_mmcv.py $(wildcard requirements/*.txt)
	@rm -f $(VENV)/.installed*
	@VENV='$(VENV)' PYTHON='$(PYTHON)' TORCH='$(TORCH)' STACK='$(STACK)' tools/setup_env.sh
	@touch $@

demo: demo-cls

demo-%: $(STAMP)
	@PATH="$(abspath $(BIN)):$$PATH" tools/demo/demo.sh $*

test: $(STAMP)
	$(TEST)

test-fast: $(STAMP)
	$(TEST) -m 'not slow'

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

docs: $(STAMP)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going docs docs/_build/html

# The wheel is built from the source distribution. A list of files from an earlier build would add to that of this one.
dist: $(STAMP)
	rm -rf dist *.egg-info
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf docs/_build dist .venv .venv-onedl $(VENV) work_dirs data build *.egg-info
