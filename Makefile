# make env    the environment in .venv, from requirements.lock
# make repro  everything: data, models, tables, figures (environment included); two stages at a time, JOBS=4: four
# make test   all tests and notebooks in small (environment included)
# make lab    JupyterLab
# make lint   ruff and the order of imports
# make lock   renew requirements.lock from pyproject.toml (needs network)
# make clean  remove the environment and what the tests leave; keeps data/, artifacts/ and DVC's cache

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
STAMP := $(VENV)/.installed
IN_ENV := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"

export DVC_NO_ANALYTICS := 1
# Keep freed memory in the process: first-touch page faults dominate small-model training.
export MALLOC_MMAP_MAX_ := 0
export MALLOC_TRIM_THRESHOLD_ := 4294967296

.DEFAULT_GOAL := env
.PHONY: env repro test lint lab lock clean

env: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is missing or older than 3.11: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Install Python 3.11 or newer and name it: make env PYTHON=python3.12" >&2; exit 1; }
	@echo "setting up $(VENV) (minutes the first time)"; \
	python=$(VENV)/bin/python; rm -f $@; \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || $(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 \
	  || $(PYTHON) -m venv --clear --without-pip $(VENV) || exit 1; \
	if $$python -m pip --version >/dev/null 2>&1; then pip="$$python -m pip"; \
	else pip="$(PYTHON) -m pip --python $$python"; fi; \
	uv=$$(command -v uv) || { $$pip install --quiet uv && uv=$(VENV)/bin/uv; } || uv=false; \
	{ $$uv pip install --quiet --compile-bytecode --python $$python --require-hashes -r requirements.lock \
	  && $$uv pip install --quiet --python $$python --no-deps -e .; } \
	|| { echo "note: not installed by uv, trying pip (slower)" >&2; \
	  $$pip install --quiet --require-hashes -r requirements.lock \
	  && $$pip install --quiet --no-deps -e .; } || exit 1; \
	touch $@

repro: env
	$(IN_ENV) python -m sumlib.pipeline.repro --jobs $(JOBS)

test: export OMP_NUM_THREADS := 1
test: env
	$(IN_ENV) python -m pytest -n 2 --dist loadfile --nbval --nbval-current-env

lint: env
	$(IN_ENV) ruff check && $(IN_ENV) ruff format --check && $(IN_ENV) lint-imports --no-logo

lab: env
	$(IN_ENV) jupyter lab

lock: env
	@$(IN_ENV); command -v uv >/dev/null || python -m pip install --quiet uv; \
	uv pip compile --quiet --universal --python-version 3.11 --extra export --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) .pytest_cache *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
