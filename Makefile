# What the targets need is installed into .venv first, in the exact versions of requirements/.
VENV := .venv
PYTHON := $(VENV)/bin/python
RUN := $(VENV)/.installed-run
ALL := $(VENV)/.installed-test
LOCKED := tools/install.sh pyproject.toml requirements/uv.txt requirements/build.txt
SHELL_SCRIPTS = .ci/run $(shell find benchmarks examples tools slurm -name '*.sh' -o -name '*.sbatch')
# Processes of tests; each may start up to four of its own (tests/conftest.py: what shares one).
WORKERS ?= 2
# Some shells have it set; but without compiled files every process of ours starts 10 seconds later.
unexport PYTHONDONTWRITEBYTECODE
PYTEST = OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(WORKERS) --dist loadgroup \
    --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow test-newest test-oldest lint lock bench bench-gpu clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

quickstart: $(RUN)  ## Train, export and evaluate a small HELM-MiCE on this machine
	@PYTHON=$(PYTHON) examples/quickstart.sh

test: lint  ## Lint, then run the tests; as root on Debian, installs SLURM for its own
	@tools/install_slurm.sh
	$(PYTEST) -m "not slow"

test-slow: $(ALL)  ## Run the tests that `make test` leaves out for time
	@tools/install_slurm.sh
	$(PYTEST) -m slow

test-newest: $(ALL)  ## Run what touches other packages with the newest versions admitted
	tools/test_versions.sh $(VENV) highest

test-oldest: $(ALL)  ## The same with the oldest versions admitted
	tools/test_versions.sh $(VENV) lowest-direct

lint: $(ALL)  ## Check style, types and shell scripts
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(VENV)/bin/shellcheck $(SHELL_SCRIPTS)
	$(VENV)/bin/hadolint docker/Dockerfile

lock:  ## Renew requirements/: the newest versions that pyproject.toml admits
	@tools/install.sh $(VENV) uv
	@tools/lock.sh $(VENV)

bench: $(ALL)  ## Measure HELM against its twin on this machine's CPU: docs/performance.md
	PYTHON=$(PYTHON) benchmarks/cpu.sh

bench-gpu: $(ALL)  ## The same on a GPU, at the sizes that train there
	PYTHON=$(PYTHON) benchmarks/gpu.sh

clean:  ## Remove caches and the quickstart's output; .venv stays
	rm -rf runs/quickstart .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(RUN): $(LOCKED) requirements/run.txt
	@tools/install.sh $(VENV) run
	@touch $@

$(ALL): $(LOCKED) requirements/test.txt requirements/te.txt
	@tools/install.sh $(VENV) test
	@touch $@
