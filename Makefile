# Needs only Python 3.11 or newer, with pip. Everything goes into .venv here.
PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check

.PHONY: quickstart test lint clean

quickstart: .venv/installed          ## make the environment, install, and run the whole loop once
	.venv/bin/stepseer quickstart

test: .venv/installed-test           ## make the environment, install with test extras, lint, and run the tests
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m pytest --numprocesses auto --maxprocesses 2 --dist loadfile

lint: .venv/installed-test           ## what `make test` checks before the tests
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
	.venv/bin/mypy

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stepseer needs Python 3.11 or newer, this is %d.%d; run make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e .
	touch $@

.venv/installed-test: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e '.[test]'
	touch .venv/installed $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
