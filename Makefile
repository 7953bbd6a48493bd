# Everything a person types on a fresh machine: `make quickstart`, then `make test`.
# Needs Python 3.11 to 3.13 with venv, git and make; all else comes from requirements.lock.

PYTHON ?= python3

# Imports of torch, ray and mlflow take seconds longer in every process without their bytecode.
unexport PYTHONDONTWRITEBYTECODE
BIN := .venv/bin
INSTALLED := .venv/.installed
# A process more than there are cores, since each waits now and then; at most four: each takes up to 2 GB.
CORES := $(shell getconf _NPROCESSORS_ONLN)
PYTEST := $(BIN)/pytest --numprocesses $$(( $(CORES) < 3 ? $(CORES) + 1 : 4 )) --dist loadfile

.PHONY: quickstart install test test-system test-slow bench check audit docs notebook format lock clean
.DELETE_ON_ERROR:

quickstart: install ## install, then search Vision Transformers on the handwritten digits
	$(BIN)/vit-search run search_spaces/digits.yaml

install: $(INSTALLED)

# uv comes first, by its own hashes out of the one lock; it then makes .venv equal to that lock.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("make: Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 …")'
	test -x $(BIN)/uv || $(PYTHON) -m venv --clear .venv
	test -x $(BIN)/uv || { awk '/^uv==/ {block = 1} block {print} block && !/\\$$/ {exit}' requirements.lock > .venv/uv.txt \
	  && $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt; }
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

test: check ## install, check, unit tests, and one walk with real processes: minutes
	$(PYTEST) --ignore=tests/system

test-system: install ## the rest: kills, clusters, services, servers, a browser, PostgreSQL
	$(PYTEST) tests/system

test-slow: install ## what takes minutes: kills at random moments and at every write of a promotion, an MLflow that never comes back, 10,000 requests
	$(BIN)/pytest -m slow

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --num-workers auto

audit: install ## an SBOM of the lock, and the known vulnerabilities of what it pins: docs/operations/security.md
	$(BIN)/python tests/audit.py

docs: install ## the documentation site, in site/: a broken link or a page that the menu lacks fails. To read it: .venv/bin/mkdocs serve
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: install ## the peers, and the tables of tests/benchmarks but search_quality's: about three hours on two cores
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint requirements.lock --editable '.[bench]'
	set -e; for script in dispatch train_step half_precision input_pipeline data_ready epoch accuracy \
    ask_cost overhead scale cluster_scale whole_search tracking serving packing; do \
	  echo "== $$script"; $(BIN)/python tests/benchmarks/$$script.py; done

notebook: install ## run the notebook of the docs anew, and store its outputs: about a minute
	$(BIN)/python tests/helpers/notebook.py

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## after a change of pyproject.toml's dependencies
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --output-file requirements.lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache site
