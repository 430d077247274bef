# What CI runs, by hand: everything works in .venv, which `make install` makes.
BIN := .venv/bin

.PHONY: install test lint format compile bench report tutorial clean

install:
	python3 -m venv .venv && $(BIN)/pip install -q -e '.[dev]'

test:
	$(BIN)/pytest -n auto

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

compile:
	$(BIN)/python -m fastmlp.kernels.compile --arch sm_80 sm_90 sm_100 sm_120 gfx942

bench:
	$(BIN)/pytest benchmarks/ --benchmark-only

report:
	$(BIN)/python -m benchmarks.report --out report

tutorial:
	$(BIN)/python docs/tutorial/run.py

clean:
	rm -rf build dist report *.egg-info .pytest_cache .mypy_cache .ruff_cache
