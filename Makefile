PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test lint benchmark pictures entropy-model clean

demo: .venv/installed  ## patch real text and report on it (demo/report/index.html)
	$(BIN)/python jobs/demo.py

test: .venv/installed .venv/browser  ## all tests
	$(BIN)/python -m pytest --numprocesses auto --no-loadscope-reorder

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: .venv/installed  ## timed comparisons; see tests/benchmarks/RESULTS.md
	for script in tests/benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

pictures: .venv/installed .venv/browser demo  ## the README's, from the demo
	$(BIN)/python tests/pictures/make.py

entropy-model: .venv/installed  ## train the default entropy model anew (an hour)
	$(BIN)/python jobs/train_entropy_model.py

# One environment for everything: the constraints name the versions that are tested together.
# Modules are compiled on all cores, which pip does not do; some that packages carry for other Pythons
# cannot be.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch $@

# The tests look at pages in a real browser.
.venv/browser: .venv/installed
	$(BIN)/python tests/support/browser.py
	touch $@

clean:
	rm -rf .venv demo build *.egg-info
