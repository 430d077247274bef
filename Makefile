# What CI runs, by hand: everything works in .venv, which `make install` makes.
BIN := .venv/bin

.PHONY: install test test-deep fuzz mutants oldest lint format house compile gpu-rehearsal bench report page docs docs-serve tutorial package wheel-check clean

install:
	python3 -m venv .venv && $(BIN)/pip install -q -e '.[dev]'

test:
	$(BIN)/pytest -n auto

# What `make test` leaves out (tests/selection.py): whole products, many seeds, all architectures.
test-deep:
	$(BIN)/pytest -n auto -m deep

# Twenty minutes a backend (FASTMLP_DEEP_MINUTES): new nets, losses and steps beside torch's, whatever happened to
# them before. A seed that found something is run again with FASTMLP_DEEP_SEED.
fuzz:
	FASTMLP_FUZZ=deep $(BIN)/pytest -n 2 -m '' -rP tests/stateful

# Faults planted one at a time (tests/faults.py), each of which `make test` must find: half an hour.
mutants:
	$(BIN)/python tests/mutants.py

# What touches the edges of torch and Triton, with the oldest pair that is supported (2.9 brings Triton 3.5) and with
# the one that most GPU machines have (2.11, Triton 3.6): `make oldest-2.11` for one, in a venv of its own, where
# `make compile BIN=.venv-2.11/bin` compiles every kernel. The interpreters of those Tritons need NumPy 2.3.
EDGES := $(addprefix tests/,kernels $(addprefix fastmlp/,autograd backends engine functional modules profiling))
oldest: oldest-2.9 oldest-2.11

oldest-%:
	python3 -m venv .venv-$*
	.venv-$*/bin/pip install -q -e '.[dev]' 'torch==$*.*' 'numpy<2.4'
	.venv-$*/bin/pytest -n auto -m '' $(EDGES)

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tests/house.py --static
	$(BIN)/mypy

format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The table of figures that have bounds: parameters, complexity, lines, Python calls before a launch.
house:
	$(BIN)/python tests/house.py

compile:
	$(BIN)/python -m fastmlp.kernels.compile --arch sm_80 sm_90 sm_100 sm_120 gfx942

# The command for a GPU (docs/benchmarks.md), whole, at toy sizes on interpreted kernels: under five minutes.
gpu-rehearsal:
	rm -rf build/gpu-rehearsal
	$(BIN)/python -m benchmarks.gpu --rehearse --minutes 4.8 --out build/gpu-rehearsal

bench:
	$(BIN)/pytest benchmarks/ --benchmark-only

report:
	$(BIN)/python -m benchmarks.report --out report

# Of a stored report: make page REPORT=benchmarks/results/cpu-amd-epyc-2
REPORT ?= report
page:
	$(BIN)/fastmlp bench --from $(REPORT) --html report

# --strict: a broken link or anchor fails. The variable silences an announcement of the theme's.
docs:
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve:
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# The notebooks anew, both languages.
tutorial:
	$(BIN)/python docs/tutorial/run.py

# With the setuptools of .venv, so that no network is needed.
package:
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

# The wheel in an environment that has nothing else, which takes a network: it trains from another folder.
wheel-check:
	rm -rf build/wheel
	python3 -m venv build/wheel
	build/wheel/bin/pip install -q "$$(ls $(CURDIR)/dist/*.whl)[train]"
	cd build/wheel && bin/python -c "import fastmlp; print(fastmlp.__version__)" && \
		bin/fastmlp train --dataset synthetic --epochs 1 --out net.safetensors

clean:
	rm -rf build dist report site .src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
