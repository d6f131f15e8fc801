# SPDX-License-Identifier: Apache-2.0
# make            set up the environment in .venv
# make demo       classification: real images -> train -> test -> re-parameterize -> test again -> summary
# make demo-seg   the same for segmentation, with a picture
# make demo-det   the same for detection, with a picture
# make demo-int8  int8 quantization on real images, with a table: accuracy, size, latency
# make test       the whole test suite, one test at a time: some measure time or memory, some kill processes
# make test-fast  the tests that are not marked slow, on all cores
# make lint       format and lint checks
# Overrides: VENV=.venv PYTHON=python3 TORCH=x.y.z
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
TORCH ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed$(if $(TORCH),-torch-$(TORCH))

.PHONY: env demo demo-seg demo-det demo-int8 test test-fast lint clean
env: $(STAMP)

$(STAMP): setup.py tools/setup_env.sh $(wildcard requirements/*.txt)
	@rm -f $(VENV)/.installed*
	@VENV='$(VENV)' PYTHON='$(PYTHON)' TORCH='$(TORCH)' tools/setup_env.sh
	@touch $@

demo: $(STAMP)
	@PATH="$(abspath $(BIN)):$$PATH" tools/demo/demo.sh cls

demo-seg demo-det: demo-%: $(STAMP)
	@PATH="$(abspath $(BIN)):$$PATH" tools/demo/demo.sh $*

demo-int8: $(STAMP)
	@PATH="$(abspath $(BIN)):$$PATH" tools/demo/demo_int8.sh

test: $(STAMP)
	$(BIN)/python -m pytest

test-fast: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n auto

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) work_dirs data build *.egg-info
