.PHONY: test lint docs bench gpu-wheels

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

# for a GPU machine without a network (x86-64, Python 3.12): see benchmarks/README.md
gpu-wheels:
	rm -rf .wheels
	python -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
		--python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
		--platform manylinux2014_x86_64 -d .wheels -r benchmarks/gpu/wheels.txt
	python -m benchmarks.gpu.wheels .wheels
