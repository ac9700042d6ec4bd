.PHONY: test test-floor lint docs bench gpu-wheels

test:
	pytest -n auto -m "not slow"

# the fast tests with the oldest supported torch and Triton, on the Python of images for GPUs
FLOOR_PYTHON ?= python3.12
FLOOR_TESTS ?= tests
# an environment for each Python
FLOOR_VENV = .venv-floor-$(notdir $(FLOOR_PYTHON))
test-floor: $(FLOOR_VENV)/ready
	$(FLOOR_VENV)/bin/python -m pytest -n auto -m "not slow" $(FLOOR_TESTS)

$(FLOOR_VENV)/ready: pyproject.toml
	$(FLOOR_PYTHON) -m venv $(FLOOR_VENV)
	$(FLOOR_VENV)/bin/pip install --quiet "torch==2.11.*" "torchvision==0.26.*" -e ".[test]"
	touch $@

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
