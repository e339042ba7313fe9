# Everything runs in .venv, which each target makes if it is missing or older than what it is made from.
PYTHON ?= python3
BIN := .venv/bin
# A process for each core, with one thread each.
TEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto
# Files stay whole, for the tests of a file share what they make.
WHOLE := --dist loadfile
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all certify test-wheel lint format index clean

demo: .venv/installed  ## train every algorithm on the embedded world and write a report
	$(BIN)/prefopt demo

test: .venv/installed-dev  ## the quick suite, about a quarter of an hour on two cores
	$(TEST) $(WHOLE) -m "not slow"

test-all: .venv/installed-dev  ## everything, slow tests included
	$(TEST) $(WHOLE)

certify: .venv/installed-dev  ## the certificates with many examples a property; other ones with PREFOPT_CERTIFY=random
	PREFOPT_CERTIFY=$(or $(PREFOPT_CERTIFY),full) $(TEST) --timeout 3600 tests/test_certificates.py tests/verify

test-wheel: .venv/installed-dev  ## build the package, install it into an empty environment, and use it there
	$(BIN)/python tests/packaging/check_wheel.py

lint: .venv/installed-dev  ## style, and imports that go down only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

index: .venv/installed  ## what lists and explanations say of the algorithms, after a change to one
	$(BIN)/python -m prefopt.algorithms.index

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache

.venv/bin/pip:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'prefopt needs Python 3.11 or newer')"
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/pip pyproject.toml constraints.txt
	$(INSTALL) --editable .
	touch $@

.venv/installed-dev: .venv/installed pyproject.toml constraints.txt
	$(INSTALL) --editable ".[test,compare,dev]"
	touch $@
