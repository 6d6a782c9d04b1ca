# Two commands do everything on a machine with Python 3.11+ and make:
#   make demo     install, run a real sweep on bundled data, analyse it, say what to try next
#   make test     install, run all tests
# Settings: PYTHON=python3.12  VENV=.venv  STORE=store  WORKERS=2  TESTERS=2  TORCH="torch==2.13.0"

VENV    ?= .venv
STORE   ?= store
WORKERS ?= 2
# Processes of the tests: as many as cores; each imports and collects everything, and tests of clusters start more.
TESTERS ?= 2
# Any pip arguments. Numbers depend on the version, so constraints.txt pins it; the build is yours to choose:
#   make setup TORCH=torch                                                         your index's build (Linux: CUDA)
#   make setup TORCH="torch --index-url https://download.pytorch.org/whl/cpu"      small, no GPU
TORCH   ?= torch==2.13.0

BIN     := $(VENV)/bin
PY      := $(BIN)/python
PIP     := $(PY) -m pip --disable-pip-version-check install --quiet -c constraints.txt
# With bytecode, whatever the environment says: tests start some hundred processes, each of which would compile anew.
PYTEST  := PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -q
READY   := $(VENV)/.ready
SOURCES := ndt_ray analysis tests tools $(wildcard benchmarks)

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-unit test-bitwise test-ray check fix docs validate bench clean

help:                ## this list
	@awk -F':.*## *' '/^[a-z-]+:.*##/ {printf "  make %-14s%s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY)      ## create .venv and install everything, pinned

# The first Python that is new enough: $(PYTHON) if given, else what is on the PATH.
$(PY):
	@for p in $(or $(PYTHON),python3 python3.12 python3.11 python3.13 python); do \
	  if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$p; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "make: no Python 3.11 or newer found; install one, or: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 2; fi; \
	echo "creating $(VENV) with $$($$found --version)"; \
	$$found -m venv $(VENV) || { rm -rf $(VENV); echo "make: $$found has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }

$(READY): pyproject.toml constraints.txt | $(PY)
	@echo "installing (a few minutes the first time)"
	@# torch first and alone, so that its build is the one asked for
	@$(PIP) $(TORCH)
	@$(PIP) -e ".[dev]"
	@touch $@

demo: $(READY)       ## a real sweep on bundled data, analysed
	@$(BIN)/ndt sweep digits --store $(STORE)

serve: $(READY)      ## the store in the browser: http://127.0.0.1:8765
	@$(BIN)/ndt serve --store $(STORE)

test: $(READY)       ## all tests; those that need data sets are skipped unless NDT_DATA names their folder
	$(PYTEST) -n $(TESTERS) --dist loadfile --no-loadscope-reorder

test-unit: $(READY)  ## the quick ones
	$(PYTEST) -n $(TESTERS) --dist loadfile tests/unit -m "not slow and not ray and not faults and not bitwise"

test-bitwise: $(READY) ## a lane equals itself in any pack
	$(PYTEST) -m bitwise

test-ray: $(READY)   ## a local Ray cluster, killed workers and drivers
	$(PYTEST) -m "ray or faults"

check: $(READY)      ## lint, format, types, generated docs
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(PY) tools/typecheck.py
	@$(PY) tools/gen_docs.py --check

fix: $(READY)        ## let ruff mend what it can
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

docs: $(READY)       ## write the generated reference pages
	@$(PY) tools/gen_docs.py

validate: $(READY)   ## the detector on series whose truth is known: an hour on two cores, goes on where it was stopped
	@$(PY) -m benchmarks.validity --workers $(WORKERS)

bench: $(READY)      ## benchmarks; records go to benchmarks/records
	@$(PIP) -e ".[bench]"
	@$(PY) -m benchmarks

clean:               ## remove the environment and everything generated; the store stays
	rm -rf $(VENV) build dist .check .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find ndt_ray analysis sweeps tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
