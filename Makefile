# `make test` and `make quickstart` install what they need into .venv first.
VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.helm-megatron-installed
SHELL_SCRIPTS = .ci/run $(shell find benchmarks examples tools slurm -name '*.sh' -o -name '*.sbatch')

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint bench bench-gpu clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

quickstart: $(INSTALLED)  ## Train, export and evaluate a small HELM-MiCE on this machine
	@PYTHON=$(PYTHON) examples/quickstart.sh

test: lint  ## Lint, then run every test; as root on Debian, installs SLURM for its own
	@tools/install_slurm.sh
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest

lint: $(INSTALLED)  ## Check style, types and shell scripts
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(VENV)/bin/shellcheck $(SHELL_SCRIPTS)
	$(VENV)/bin/hadolint docker/Dockerfile

bench: $(INSTALLED)  ## Measure HELM against its twin on this machine's CPU: docs/performance.md
	PYTHON=$(PYTHON) benchmarks/cpu.sh

bench-gpu: $(INSTALLED)  ## The same on a GPU, at the sizes that train there
	PYTHON=$(PYTHON) benchmarks/gpu.sh

clean:  ## Remove caches and the quickstart's output; .venv stays
	rm -rf runs/quickstart .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	@tools/make_venv.sh $(VENV)
	$(PYTHON) -m pip install --editable '.[dev,eval,deepspeed]'
	@touch $@
