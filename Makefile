# Everything runs in .venv, made from the pinned versions in constraints.txt. PYTHON may name another Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test check bench

demo: $(INSTALLED)
	$(BIN)/viewdiff run --preset tiny

test: $(INSTALLED)
	$(BIN)/python -m pytest

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	for name in synth import preprocess preprocess_memory loader counts plan volume attention true_size scaling gpu; do $(BIN)/python -m benchmarks.bench_$$name || exit 1; done

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || (echo "needs Python 3.11: make PYTHON=/path/to/python3.11"; exit 2)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable ".[dev]"
	touch $(INSTALLED)
