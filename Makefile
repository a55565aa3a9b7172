# `make demo` and `make test` set up what they need in .venv; a second run of either does not set up again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch is pinned so that pip takes the CPU build; set TORCH to install another one.
TORCH ?= torch==2.13.0
# Processes that run the tests side by side.
JOBS ?= 2
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml
CXX_FILES := $(shell find csrc tests/kernels/simt -name "*.cpp" -o -name "*.h" -o -name "*.cu" -o -name "*.cuh")

.PHONY: setup demo test test-slow test-browser lint format bench gpu clean
.DEFAULT_GOAL := setup

$(VENV)/.packages: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb')); e = p['project']['optional-dependencies']; \
	  print('\n'.join(p['build-system']['requires'] + p['project']['dependencies'] + e['hf'] + e['demo'] + e['report'] + e['train'] + e['bench'] + e['dev']))" \
	  > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/requirements.txt
	touch $@

$(VENV)/.built: $(VENV)/.packages $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

setup: $(VENV)/.built

demo: $(VENV)/.built
	$(BIN)/cone demo

test: $(VENV)/.built
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-slow: $(VENV)/.built
	$(BIN)/python -m pytest -m slow

# Chromium comes from Debian where there is none; elsewhere install one, and it is found on the PATH.
test-browser: $(VENV)/.built
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  apt-get install -y --no-install-recommends chromium
	$(BIN)/python -m pytest -m browser

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(VENV)/.built
	$(BIN)/python -m pytest bench --benchmark-enable --benchmark-json=bench/results/latest.json -m ""

# On a machine with a GPU, offline, with that machine's own Python and torch; STAGES="build test sanitize bench".
RESULTS ?= bench/results
gpu:
	$(PYTHON) -m bench.gpu.run --results $(RESULTS) $(STAGES)

clean:
	rm -rf $(VENV) build *.egg-info cone_kernels/*.so .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
