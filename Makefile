.PHONY: test lint docs bench

test:
	pytest -n auto -m "not slow"

lint:
	ruff check .
	ruff format --check .
	mypy
	lint-imports

docs:
	mkdocs build --strict

bench:
	pytest benchmarks --benchmark-only
