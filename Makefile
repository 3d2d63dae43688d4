# `make demo` and `make test` do all the set-up themselves; a second call starts at once.
# Needs Python 3.11 or newer, cmake and a C++ compiler (TextWorld's planner is built from source).

PYTHON      ?= python3.11
VENV        := .venv
BIN         := $(VENV)/bin
STAMP       := $(VENV)/.installed
CONSTRAINTS := constraints.txt
TORCH       := $(shell sed -n 's/^\(torch==.*\)/\1/p' $(CONSTRAINTS))
DEMO_ARGS   ?=
PYTEST_ARGS ?=
# Processes that run the tests, a file at a time; torch has one thread in each.
WORKERS     ?= 2
PYTEST      := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
BENCH_ARGS  ?=
# Extras that are tested with the packages that they name, where these are light, and the tests that are skipped without them.
ADAPTERS    := .venv-adapters
ADAPTED     := sweep,data,minari,skyrl,trl,openenv,wandb,trackio,mlflow
ADAPTER_TESTS := $(addprefix tests/test_,sweep.py export_data.py minari.py skyrl.py trl.py openenv.py log_services.py hub.py)
# What the site of the documentation is built with, in an environment of its own.
DOCS        := $(shell sed -n 's/^docs = \["\(.*\)"\].*/\1/p' pyproject.toml)
LOGDIR      ?= runs

export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help install demo test test-ci test-slow test-adapters test-lowest lint types format audit bench docs notebook tensorboard clean

help:
	@echo "make demo         train AgentPRM from nothing and print the table (DEMO_ARGS=...)"
	@echo "make test         the tests that take seconds, in two processes (WORKERS=2 PYTEST_ARGS=...)"
	@echo "make test-ci      the tests that .ci/run runs beside these: ten minutes more"
	@echo "make test-slow    all tests; minutes more, for once a week"
	@echo "make test-adapters  the tests of what plugs into other packages, with these packages, in .venv-adapters"
	@echo "make test-lowest  the quick tests with the lowest versions that pyproject.toml allows, in .venv-lowest"
	@echo "make lint         ruff: style and formatting"
	@echo "make types        mypy"
	@echo "make format       let ruff rewrite the files"
	@echo "make audit        licences of what is installed, and known weaknesses where pip-audit reaches a service"
	@echo "make bench        list the benchmarks; make bench NAME=<one> BENCH_ARGS=--quick runs it"
	@echo "make docs         build the documentation as a site, in site/; a warning is an error"
	@echo "make notebook     run docs/first_steps.ipynb and keep what it shows in it"
	@echo "make tensorboard  show the curves under $(LOGDIR)/ (LOGDIR=...)"
	@echo "make install      only create $(VENV) and install"
	@echo "make clean        remove $(VENV) and caches"

install: $(STAMP)

# torch goes first, so that its download is visible as what it is and the rest resolves around it.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: $(PYTHON) not found. Install Python 3.11 or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: expected Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: PYTHON=..." >&2; exit 1; }
	@command -v cmake >/dev/null || { \
	  echo "make: cmake not found; TextWorld's planner is built with it. Install it, for example: apt-get install cmake" >&2; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || { \
	  echo "make: no C++ compiler found; TextWorld's planner is built with it. Install one, for example: apt-get install g++" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install "$(TORCH)" -c $(CONSTRAINTS)
	$(BIN)/python -m pip install -e ".[dev]" -c $(CONSTRAINTS)
	@touch $@

demo: $(STAMP)
	$(BIN)/agentprm demo $(DEMO_ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow and not gpu" $(PYTEST_ARGS)

test-ci: $(STAMP)
	OMP_NUM_THREADS=1 $(PYTEST) -m "ci and not gpu" $(PYTEST_ARGS)

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(PYTEST) -m "not gpu" $(PYTEST_ARGS)

# These packages pull in many others, some in older versions: they lie in front of those of $(VENV), which stay as they are.
test-adapters: $(STAMP)
	test -x $(ADAPTERS)/bin/python || $(BIN)/python -m venv $(ADAPTERS)
	$(ADAPTERS)/bin/python -c 'import site; here = site.getsitepackages()[0]; \
	  there = here.replace("$(abspath $(ADAPTERS))", "$(abspath $(VENV))"); \
	  open(here + "/borrowed.pth", "w").write(f"import site; site.addsitedir({there!r})\n")'
	$(ADAPTERS)/bin/python -m pip install "agentprm-gym[$(ADAPTED)]"
	OMP_NUM_THREADS=1 $(ADAPTERS)/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu" $(ADAPTER_TESTS) $(PYTEST_ARGS)

# What old packages warn of is what newer ones changed since; it is no fault of ours.
test-lowest:
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt \
	  PYTEST_ARGS="-W ignore::DeprecationWarning -W ignore::FutureWarning $(PYTEST_ARGS)"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# pip-audit has an environment of its own: what it needs must not change the versions that are looked at. Licences need no network.
audit: $(STAMP)
	@test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install -q pip-audit; } || \
	  echo "make: pip-audit cannot be installed here (no network?): licences only"
	$(BIN)/python -m benchmarks.audit --pip-audit .venv-audit/bin/pip-audit

bench: $(STAMP)
ifdef NAME
	$(BIN)/python -m benchmarks.$(NAME) $(BENCH_ARGS)
else
	@echo "Run one with: make bench NAME=<name> [BENCH_ARGS=--quick], or $(BIN)/python -m benchmarks.<name> --help"
	@for f in $$(grep -l '__name__ == "__main__"' benchmarks/*.py); do echo "  $$(basename $$f .py)"; done
endif

docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

.venv-docs/.installed: pyproject.toml
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install "$(DOCS)"
	@touch $@

notebook: $(STAMP)
	$(BIN)/python docs/run_notebook.py docs/first_steps.ipynb

tensorboard: $(STAMP)
	$(BIN)/tensorboard --logdir $(LOGDIR)

clean:
	rm -rf $(VENV) $(ADAPTERS) .venv-lowest .venv-audit .venv-docs site .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
