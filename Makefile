PYTHON ?= python3.11
BIN := .venv/bin

# A process takes a file of tests after the other, in the order of tests/conftest.py.
PROCESSES ?= auto
PYTEST := $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: demo tutorial help test test-fast gpu-check lint benchmark claims api fuzz chaos doc-commands pictures entropy-model clean

demo: .venv/installed  ## patch real text and report on it (demo/report/index.html)
	$(BIN)/python jobs/demo.py

tutorial: .venv/installed  ## corpus, patches, report, training, text: docs/tutorial.md, run (15 minutes)
	$(BIN)/python tests/pictures/tutorial.py

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

test: .venv/installed .venv/browser  ## all tests
	$(PYTEST)

test-fast: .venv/installed  ## the tests that start no Ray, browser, training or job: a minute
	$(PYTEST) -m "not ray and not browser and not slow and not gpu"

gpu-check: .venv/installed  ## what only a GPU can tell: right, fast, how near to the card's ceiling (9 minutes)
	$(BIN)/python tests/gpu/check.py

lint: .venv/installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: .venv/installed  ## timed comparisons; see tests/benchmarks/RESULTS.md
	for script in tests/benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

claims: .venv/installed  ## train patches against tokens and more, resumable (hours; docs/claims.md); FLAGS="--form gpu"
	for name in patches patch-sizes entropy-models hashes robustness; do \
		$(BIN)/python jobs/compare.py --experiment $$name $(FLAGS) || exit 1; done

api: .venv/installed  ## the reference of all modules, from their docstrings (build/api/index.html)
	$(BIN)/python -W ignore docs/api.py

fuzz: .venv/installed  ## read 20,000 damaged files in bounded processes (FLAGS="--count 100 --seed 1")
	$(BIN)/python tests/campaigns/fuzz.py $(FLAGS)

chaos: .venv/installed  ## random kills of jobs, Ray and storage, with reruns; FLAGS="--rounds 50 --seed 1"
	$(BIN)/python tests/campaigns/chaos.py $(FLAGS)

doc-commands: .venv/installed  ## run every command of every page, small (half an hour); FLAGS="--page docs/shards.md"
	$(BIN)/python tests/campaigns/doc_commands.py $(FLAGS)

pictures: .venv/installed .venv/browser demo  ## the README's pictures, made from the demo
	$(BIN)/python tests/pictures/make.py

entropy-model: .venv/installed  ## train the default entropy model anew (an hour)
	$(BIN)/python jobs/train_entropy_model.py

# One environment for everything: the constraints name the versions that are tested together.
# Modules are compiled on all cores, which pip does not do, but not the tests of packages; some that
# packages carry for other Pythons
# cannot be.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m compileall -qq -j 0 -x /tests/ .venv/lib || true
	touch $@

# The tests look at pages in a real browser.
.venv/browser: .venv/installed
	$(BIN)/python tests/support/browser.py
	touch $@

clean:  ## remove everything that these make
	rm -rf .venv demo tutorial build *.egg-info
