# The commands of development, by name: `make` lists them. CONTRIBUTING.md says how long each takes.
.PHONY: help setup hooks check check-fast test some quick dashboard contract contract-long model chaos hosts browser \
  picture bench coverage python-3.13 format lint types imports dependencies reference pins

help: ## List the targets.
	@grep -E '^[a-z0-9.-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

setup: ## Make .venv with everything that development needs.
	python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[test]'

hooks: ## Check what each commit changes, before it is made.
	.venv/bin/pre-commit install

check: ## Check everything, as CI does.
	.ci/run

check-fast: lint types imports dependencies quick ## Check what takes a minute or two.

test: ## Run all tests of the product.
	.venv/bin/pytest -n 2 --dist loadfile

some: ## Run some tests: make some ARGS='tests/core -k idempotency'
	.venv/bin/pytest $(ARGS)

quick: ## Run the tests of a minute.
	.venv/bin/pytest -m quick

dashboard: ## Test the dashboard without a browser, metrics and alerts.
	.venv/bin/pytest -n 2 --dist loadfile tests/dashboard tests/monitoring

contract: ## Try the OpenAPI document out.
	.venv/bin/pytest tests/contract

contract-long: ## Try the OpenAPI document out with more examples.
	EXAMPLES=300 .venv/bin/pytest tests/contract

model: ## Run thousands of interleavings of API, workers and clock.
	.venv/bin/pytest tests/model

chaos: ## Run faults, one at a time, under load.
	.venv/bin/pytest tests/chaos

hosts: ## Cut several hosts off one by one. Needs root.
	.venv/bin/pytest tests/hosts

browser: ## Test dashboard and playground in Chromium.
	.venv/bin/pytest tests/browser

picture: ## Make the picture of the dashboard.
	.venv/bin/pytest tests/browser/test_picture.py --screenshots docs

bench: ## Measure the speed, side by side with other designs.
	.venv/bin/python -m tests.bench

coverage: ## Show which lines the quick tests do not reach.
	.venv/bin/pytest -q -m quick -n 2 --dist loadfile --cov --cov-report=term

python-3.13: ## Run the quick tests on Python 3.13, in a tree of Debian 13. Needs root.
	.ci/python-3.13

format: ## Format the code.
	.venv/bin/ruff format .

lint: ## Check format and code.
	.venv/bin/ruff format --check . && .venv/bin/ruff check .

types: ## Check the types.
	.venv/bin/mypy

imports: ## Check who imports whom.
	.venv/bin/lint-imports

dependencies: ## Check that everything that is imported is declared.
	.venv/bin/deptry api core workers

reference: ## Write the pages of docs/reference.
	.venv/bin/python -m tests.docs.reference_pages

pins: ## Pin all versions anew.
	uv pip compile --universal --all-extras --python-version 3.11 --no-header --no-annotate pyproject.toml -o constraints.txt
