# The commands of this repository. Everything that they need beyond git, make and python3 goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := protos/exchange/v1/exchange.proto
RUN := env -u PYTHONDONTWRITEBYTECODE
# One more than there are cores: many tests wait for what their processes do
ON_EVERY_CORE = --numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test check lint type layers protos protos-current compiled defences faults fuzz mutants bench clean

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

demo: $(VENV)/installed ## three national nodes share a dozen advisories
	@$(BIN)/apostille demo

test: $(VENV)/installed-dev compiled ## all tests, on every core
	@$(RUN) $(BIN)/python -m pytest $(ON_EVERY_CORE)

check: $(VENV)/installed-dev lint type layers protos-current test ## exactly what CI runs

lint: $(VENV)/installed-dev ## format and lint
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

type: $(VENV)/installed-dev ## types, tests included
	@$(BIN)/mypy

layers: $(VENV)/installed-dev ## who may import whom
	@$(BIN)/lint-imports

protos: $(VENV)/installed-dev ## generate the wire code anew
	@$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

protos-current: $(VENV)/installed-dev
	@rm -rf $(VENV)/protos && mkdir -p $(VENV)/protos
	@$(BIN)/python -m grpc_tools.protoc -I. --python_out=$(VENV)/protos --pyi_out=$(VENV)/protos \
		--grpc_python_out=$(VENV)/protos $(PROTOS)
	@for made in $(VENV)/protos/protos/exchange/v1/*; do \
		cmp -s $$made protos/exchange/v1/$$(basename $$made) || { echo "$$(basename $$made) is not current: make protos"; exit 1; }; \
	done

compiled: $(VENV)/installed-dev
	@$(RUN) $(BIN)/python -m compileall -q node federation config protos

defences: $(VENV)/installed-dev ## take each defence out of a copy, see its tests fail (15 minutes)
	@$(BIN)/python -m tests.defences

faults: $(VENV)/installed-dev ## the fault campaigns with their full counts (some hours; docs/security.md has results)
	@APOSTILLE_FULL=1 $(RUN) $(BIN)/python -m pytest $(ON_EVERY_CORE) tests/faults tests/conformance

fuzz: $(VENV)/installed-dev ## malformed input, guided by coverage: each reader for a minute (docs/security.md has results)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'atheris>=3.0'
	@$(BIN)/python -m tests.faults.campaign_fuzz --seconds 60

mutants: $(VENV)/installed-dev ## mutate the code that verifies and decides (1.5 hours; docs/mutation.md has results)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'mutmut>=3.8,<4'
	@$(BIN)/python -m tests.mutation $(VENV)/mutants

bench: $(VENV)/installed-dev ## benchmarks, as ratios taken in one run
	@$(BIN)/python -m bench

clean: ## remove what make made
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Apostille needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml $(BIN)/python
	@echo "Installing Apostille into $(VENV) (about a minute, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/installed-dev: pyproject.toml $(BIN)/python
	@echo "Installing Apostille and its tools into $(VENV) (about a minute, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/installed
