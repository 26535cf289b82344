# Everything runs in .venv, made from the pinned versions in constraints.txt: files with the digests in requirements.lock,
# and the build of PyTorch that pip is set up for. PYTHON may name another Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test check bench lock

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

# After a change of constraints.txt.
lock:
	PYTHON=$(PYTHON) bash .ci/lock

$(INSTALLED): pyproject.toml constraints.txt requirements.lock requirements-build.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || (echo "needs Python 3.11: make PYTHON=/path/to/python3.11"; exit 2)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --require-hashes --requirement requirements-build.lock
	$(BIN)/pip install --require-hashes --no-deps --no-build-isolation --requirement requirements.lock
	$(BIN)/pip install --constraint constraints.txt torch
	$(BIN)/pip install --no-deps --no-build-isolation --editable .
	$(BIN)/pip check
	touch $(INSTALLED)
