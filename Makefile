# `make demo` and `make test` set up what they need in .venv; a second run of either does not set up again.
# All versions are those of the locks in requirements/, but for torch's, of which each machine has a build of its own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch is pinned so that pip takes the CPU build; set TORCH to install another one.
TORCH ?= torch==2.13.0
TORCH_OLDEST ?= torch==2.11.0
# Processes that run the tests side by side.
JOBS ?= 2
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml
CXX_FILES := $(shell find csrc tests -name "*.cpp" -o -name "*.h" -o -name "*.cu" -o -name "*.cuh")
EXTRAS := hf demo report train remote bench dev
comma := ,

# Without --no-compile pip spends as long on bytecode, most of which nobody imports, as on all the rest; what is imported
# is compiled once, also where the environment tells Python to keep no bytecode: importing torch takes 2 s longer then.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := -m pip install --quiet --no-compile
LOCKED := $(INSTALL) --no-deps --require-hashes --requirement
EDITABLE := $(INSTALL) --no-build-isolation --editable
# The suite; the tests of a file share a process, and with it their models.
SUITE := -m pytest -n $(JOBS) --dist loadfile

.PHONY: setup demo test test-kernels test-latest test-oldest test-slow test-browser mutate fuzz sanitize lint format bench docs gpu lock clean
.DEFAULT_GOAL := setup

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.build-packages: requirements/build.txt | $(BIN)/python
	$(BIN)/python $(LOCKED) $<
	touch $@

$(VENV)/.demo-packages: requirements/demo.txt $(VENV)/.build-packages
	$(BIN)/python $(INSTALL) --no-deps $(TORCH)
	$(BIN)/python $(LOCKED) $<
	touch $@

$(VENV)/.packages: requirements/test.txt $(VENV)/.demo-packages
	$(BIN)/python $(LOCKED) $<
	touch $@

# The demo runs on this CPU; building for other processors and for GPUs takes longer than all the rest and is left to the
# tests.
$(VENV)/.demo-built: $(VENV)/.build-packages $(SOURCES)
	CONE_CUDA=$${CONE_CUDA:-0} CONE_ISAS=$${CONE_ISAS:-best} $(BIN)/python $(EDITABLE) . --no-deps
	touch $@

$(VENV)/.built: $(VENV)/.packages $(SOURCES)
	$(BIN)/python $(EDITABLE) . --no-deps
	touch $@

setup: $(VENV)/.built

# Where all is set up, the demo runs in that; else the compiler and pip work side by side.
demo:
	$(MAKE) --no-print-directory --jobs=2 $(or $(wildcard $(VENV)/.built),$(VENV)/.demo-packages $(VENV)/.demo-built)
	$(BIN)/cone demo

test: $(VENV)/.built
	$(BIN)/python $(SUITE)

# The GPU kernels on the CPU; `make test` has these tests where a source or a version is another one than when they last
# passed here.
test-kernels: $(VENV)/.built
	$(BIN)/python -m tests.support.passed_before -n $(JOBS)

# The newest release of everything but torch, in an environment of its own that is brought up to date each time.
test-latest:
	test -x .venv-latest/bin/python || $(PYTHON) -m venv .venv-latest
	echo "$(TORCH)" > .venv-latest/constraints.txt
	.venv-latest/bin/python $(INSTALL) --no-deps $(TORCH)
	.venv-latest/bin/python $(INSTALL) --upgrade setuptools pybind11
	.venv-latest/bin/python $(EDITABLE) ".[$(subst $() $(),$(comma),$(EXTRAS))]" --requirement requirements/trl.in \
	  --upgrade --upgrade-strategy eager --constraint .venv-latest/constraints.txt
	.venv-latest/bin/python $(SUITE)

# The lowest releases that pyproject.toml admits. TORCH_OLDEST may be a build for GPUs, which loads libraries of its own.
.venv-oldest/.built: requirements/oldest.txt $(SOURCES)
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python $(INSTALL) --no-deps $(TORCH_OLDEST)
	.venv-oldest/bin/python requirements/torch_libraries.py > .venv-oldest/torch_libraries.txt
	test ! -s .venv-oldest/torch_libraries.txt || \
	  .venv-oldest/bin/python $(INSTALL) --requirement .venv-oldest/torch_libraries.txt
	.venv-oldest/bin/python $(LOCKED) $<
	.venv-oldest/bin/python $(EDITABLE) . --no-deps
	touch $@

test-oldest: .venv-oldest/.built
	.venv-oldest/bin/python $(SUITE)

test-slow: $(VENV)/.built
	$(BIN)/python -m pytest -m slow

# Chromium comes from Debian where there is none; elsewhere install one, and it is found on the PATH.
test-browser: $(VENV)/.built
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  apt-get install -y --no-install-recommends chromium
	$(BIN)/python -m pytest -m browser

# Faults put into a copy of the package, one at a time: how many of them the tests notice.
MUTATE ?= --sample 200 --minutes 20
$(VENV)/.mutate-packages: requirements/mutate.txt $(VENV)/.built
	$(BIN)/python $(LOCKED) $<
	touch $@

mutate: $(VENV)/.mutate-packages
	$(BIN)/python -m bench.mutate --processes $(JOBS) $(MUTATE)

# Altered bytes for everything that reads some; finds stay in bench/results/fuzz.
FUZZ ?= --seconds 120 --seed 0
fuzz: $(VENV)/.built
	$(BIN)/python -m bench.fuzz $(FUZZ)

# The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, with the tests of the ops.
SANITIZED ?= tests/ops tests/kernels/test_segments.py
sanitize: $(VENV)/.built
	$(BIN)/python -m bench.sanitize $(SANITIZED)

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

# The pages as a site in site/; a warning is an error. `make test` runs what they show. Needs Python 3.11.
.venv-docs/.packages: requirements/docs.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python $(LOCKED) $<
	touch $@

docs: .venv-docs/.packages
	.venv-docs/bin/zensical build --strict --config-file mkdocs.yml

# On a machine with a GPU, offline, with that machine's own Python and torch;
# STAGES="build test sanitize bench product end_to_end"; ONLY="pooling,cosine" times some cases of the benchmark alone.
RESULTS ?= bench/results
gpu:
	ONLY="$(ONLY)" $(PYTHON) -m bench.gpu.run --results $(RESULTS) $(STAGES)

# Brings the locks up to date: test.txt has all that tests, lint and bench need, demo.txt what the demo needs, in the same
# versions, for every Python that pyproject.toml admits; oldest.txt has the lowest versions, for the lowest Python. Where no
# final release fits the newest release of another package, that other one is taken older, and never a release candidate.
UV_COMPILE = .venv-lock/bin/uv pip compile --quiet --no-config --no-python-downloads --upgrade --prerelease disallow \
  --python-version 3.10 --no-emit-index-url --generate-hashes --custom-compile-command "make lock"
LOCK = $(UV_COMPILE) --overrides requirements/left-out.in pyproject.toml requirements/build.in requirements/torch.in
lock:
	test -x .venv-lock/bin/uv || ($(PYTHON) -m venv .venv-lock && .venv-lock/bin/python $(INSTALL) uv)
	$(LOCK) requirements/trl.in --universal $(EXTRAS:%=--extra %) --output-file requirements/test.txt
	$(UV_COMPILE) --universal requirements/build.in --constraints requirements/test.txt \
	  --output-file requirements/build.txt
	$(LOCK) --universal --extra demo --constraints requirements/test.txt --output-file requirements/demo.txt \
	  --overrides requirements/left-out-of-demo.in
	$(subst 3.10,3.11,$(UV_COMPILE)) --universal requirements/docs.in --output-file requirements/docs.txt
	$(UV_COMPILE) --universal requirements/nvcc.in --output-file requirements/nvcc.txt
	$(UV_COMPILE) --universal requirements/mutate.in --constraints requirements/test.txt \
	  --output-file requirements/mutate.txt
	$(LOCK) --resolution lowest-direct $(EXTRAS:%=--extra %) --output-file requirements/oldest.txt

clean:
	rm -rf .venv .venv-latest .venv-oldest .venv-lock .venv-docs site build *.egg-info cone_kernels/*.so .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
