# Two commands do everything: `make demo` and `make test`. Each sets up .venv by itself.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help demo test chaos lint bench try-qserv recover install-profile docs lock felis clean

help: ## show this text
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 17

demo: $(BIN)/.ready ## make the dataset fakedb, load it, and ask it two questions
	@start=$$(date +%s.%N); \
	snakemake --quiet rules progress host; \
	python scripts/summarize_run.py results/fakedb --since $$start

test: $(BIN)/.ready ## run every test (all cores)
	pytest -n auto --dist loadgroup

chaos: $(BIN)/.ready ## kill runs at random, and compare what they make with an undisturbed one (KILLS=50 SEED=1)
	python tests/chaos.py --kills $(or $(KILLS),50) --seed $(or $(SEED),1)

lint: $(BIN)/.ready ## check the style of scripts, tests and rules
	ruff check
	ruff format --check
	snakefmt --check workflow
	snakemake --lint

bench: $(BIN)/.ready ## measure speed, memory and growth; writes results/bench.json and bench.png
	python scripts/measure_speed.py

try-qserv: $(BIN)/.ready ## load one chunk into a scratch database of a Qserv cluster, and delete it (CONFIG=configs/X/config.yaml)
	@test -n "$(CONFIG)" || { echo "make: say which configuration: make try-qserv CONFIG=configs/X/config.yaml" >&2; exit 1; }
	python scripts/try_qserv.py -c "$(CONFIG)"

DIRECTORY ?= .
recover: $(BIN)/.ready ## after a kill -9 of Snakemake: end its jobs, wait for what has outlived it, unlock (DIRECTORY=...)
	@python scripts/recover_run.py --directory "$(DIRECTORY)"

PROFILES = $${XDG_CONFIG_HOME:-$$HOME/.config}/snakemake
install-profile: ## link profiles/slurm into your Snakemake folder, for `snakemake --profile slurm`
	@link="$(PROFILES)/slurm"; \
	if [ -e "$$link" ] || [ -L "$$link" ]; then \
	  [ "$$(readlink -f "$$link")" = "$(CURDIR)/profiles/slurm" ] || { echo "make: $$link is there already and is not our link; move it away, or use --workflow-profile slurm" >&2; exit 1; }; \
	else \
	  mkdir -p "$(PROFILES)"; ln -s "$(CURDIR)/profiles/slurm" "$$link"; \
	fi; \
	echo "$$link -> $(CURDIR)/profiles/slurm"

docs: $(BIN)/.ready ## write docs/configuration.md from the schema
	python scripts/write_docs.py

lock: $(BIN)/.ready ## pin the versions of pyproject.toml in the requirements files and environment.yml
	pip install --quiet pip-tools
	pip-compile --quiet --strip-extras --extra dev --no-header --no-annotate --no-emit-index-url --no-emit-trusted-host \
	  --no-emit-find-links --no-emit-options --output-file requirements.lock pyproject.toml
	python scripts/write_docs.py --environment
	pip-compile --quiet --strip-extras --extra felis --constraint requirements.lock --no-header --no-annotate --no-emit-index-url \
	  --no-emit-trusted-host --no-emit-find-links --no-emit-options --output-file requirements-felis.lock pyproject.toml

felis: $(BIN)/.felis ## install what reads schema files in Felis into .venv (the dataset dp1 needs it)

clean: ## remove .venv and caches (results stay)
	rm -rf .venv .pytest_cache .ruff_cache

$(BIN)/.ready: requirements.lock
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" || { echo "make: Python 3.11 is needed, found $$($(PYTHON) --version); say make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -c "import sys; sys.path.insert(0, 'scripts'); from skymill import kernels; kernels.library() or print('make: there is no C compiler (apt-get install gcc libc6-dev); everything works without, but takes twice as long')"
	touch $@

$(BIN)/.felis: $(BIN)/.ready requirements-felis.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements-felis.lock
	touch $@
