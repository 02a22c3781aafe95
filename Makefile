# Everything here makes the virtual environment that it needs, with nothing but Python >= 3.11 and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint fmt clean

demo: $(STAMP)
	$(BIN)/leyden train experiment=cnn_digits

# three workers for two cores: many tests wait for a process, a time-out, a cluster
test: $(STAMP) lint
	$(BIN)/python -m pytest -n 3 --dist worksteal $(PYTEST)

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
