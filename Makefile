# Two commands for a newcomer: make demo, make test. Both set up what is missing and say so in a line.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip -qq --disable-pip-version-check
READY := $(VENV)/ready
BUILT := $(VENV)/built
RIVALS := $(VENV)/rivals
JOBS ?= 2

# $(call provide,PROGRAMS): install those that are missing by the system's package manager. PROGRAM=PACKAGE names Debian's
# package where that is called otherwise.
define provide
set -e; for wanted in $(1); do \
	program=$${wanted%=*}; command -v $$program >/dev/null 2>&1 && continue; \
	package=$$(echo $$wanted | cut -d= -f2); [ $$(id -u) = 0 ] && sudo= || sudo=sudo; \
	if command -v apt-get >/dev/null 2>&1; then \
		echo "installing $$package with apt-get"; \
		$$sudo apt-get update -qq >/dev/null; \
		DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq $$package >/dev/null; \
	elif command -v brew >/dev/null 2>&1; then \
		package=$${program%-*}; echo "installing $$package with brew"; brew install --quiet $$package; \
	else \
		echo "$$program is missing: install it with your system's package manager" >&2; exit 2; \
	fi; \
done
endef

.DEFAULT_GOAL := help
.PHONY: help demo test docs check loadtest bench soak browser servers clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile

demo: $(BUILT) servers ## tour two data centres on real servers (ARGS="--json", "--keep")
	@$(BIN)/leasecache demo $(ARGS)

test: $(BUILT) servers browser ## run every test against real servers (ARGS="-k lease", JOBS=4)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

docs: $(BUILT) ## write anew what pages draw from the code, and check their links
	@$(BIN)/python -m docs

check: $(BUILT) ## format, lint, types, layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_layers.py

loadtest: $(BUILT) servers ## 100 locust users on one hot key for 30 s (ARGS="--users 200")
	@$(BIN)/python -m loadtests.herd $(ARGS)

bench: $(BUILT) $(RIVALS) servers ## compare with floors and rivals (ARGS="--rows P1,P3 --quick --json FILE")
	@$(BIN)/python -m loadtests.bench $(ARGS)

soak: $(BUILT) servers ## look for values that are too old, for 5 minutes (ARGS="--run simulation --seconds 60")
	@$(BIN)/python -m tests.safety $(ARGS)

browser:
	@$(call provide,chromium chromedriver=chromium-driver)

servers: $(BUILT)
	@$(call provide,memcached redis-server)
	@$(BIN)/python -m leasecache.lab.fetch

$(READY): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed: make PYTHON=python3.12 …" >&2; exit 2; }
	@[ -x $(BIN)/python ] || echo "making $(VENV) and installing leasecache into it (once, about two minutes)"
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV) \
		|| { echo "cannot make $(VENV): on Debian, apt-get install python3-venv" >&2; rm -rf $(VENV); exit 2; }
	@$(PIP) install --upgrade 'pip>=25.1' 'setuptools>=77' 'Cython>=3.1'
	@$(PIP) install --no-build-isolation --editable '.[redis,cli,postgres,daemon,lab,loadtest]' --group dev
	@touch $@

# pylibmc is built from source where it has no wheel. What cannot be installed is left out, and its rows say so.
$(RIVALS): $(READY)
	@echo "installing valgrind and the rivals of the bench (once)"
	@($(call provide,valgrind)) || echo "no valgrind: instructions are not counted"
	@$(PIP) install --only-binary :all: pylibmc 2>/dev/null || ($(call provide,libmemcached-dev)) || true
	@$(BIN)/python -c 'import importlib.metadata as m; \
		print(*(r.partition(";")[0] for r in m.requires("leasecache") if "extra == \"bench\"" in r), sep="\n")' \
		| while read -r rival; do $(PIP) install "$$rival" 2>/dev/null </dev/null || echo "$$rival cannot be installed here"; done
	@touch $@

$(BUILT): $(READY) $(wildcard ext/*.pyx ext/*.pxd)
	@echo "building the extensions"
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

clean: ## remove the virtual environment and everything built
	rm -rf $(VENV) build dist *.egg-info leasecache/*.so invalidation/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
