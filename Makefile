# Everything here makes the virtual environment that it needs, with nothing but Python >= 3.11 and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all lint fmt clean

demo: $(STAMP)
	$(BIN)/leyden train experiment=cnn_digits

# Three workers for two cores: many tests wait for a process, a time-out, a cluster. The first worker that reads a
# test file leaves its bytecode for the others, whatever the environment says.
RUN_TESTS = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 3 --dist worksteal

test: $(STAMP) lint
	$(RUN_TESTS) -m "not slow" $(PYTEST)

# what `make test` leaves out
test-all: $(STAMP)
	$(RUN_TESTS) -m slow $(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/codespell
	$(BIN)/pyrefly check --config pyrefly-strict.toml

fmt: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# constraints.txt holds the exact versions that CI tests; torch there is the CPU build
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "leyden needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist
