# Everything a newcomer needs: `make help`. Each target makes the virtual environment it needs from the hash-pinned lock.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test adversary sequences lint format proto kafka bench lock clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

setup: $(READY) ## Make the virtual environment from the hash-pinned lock

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Flaghoist needs Python 3.11 or newer, this is %s.%s: run make PYTHON=python3.12 …" % sys.version_info[:2])'
	@echo "making $(VENV) (once; about half a minute) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## Tell the whole story on this machine: keys, approval, a flip seen by live clients, attacks, audit
	@$(BIN)/flaghoist demo

test: $(READY) ## Run every test; those that need Java (a real Kafka) skip at a desk without it
	@$(BIN)/python -m pytest $(ARGS)

adversary: $(READY) ## Tell one run of the adversary (SEED=1234), or play new ones for a minute
	@$(BIN)/python -m tests.adversary $(SEED)

sequences: $(READY) ## Tell one random sequence of releases (SEED=1234), or play new ones for three minutes
	@$(BIN)/python -m tests.releases $(SEED)

lint: $(READY) ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY) ## Let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

proto: $(READY) ## Generate the gRPC stubs from the .proto files
	@$(BIN)/python proto/generate.py

kafka: $(READY) ## Start a Kafka broker to play with (Java 17, Maven); Ctrl-C stops it
	@$(BIN)/python tests/kafka/broker.py

bench: $(READY) ## Measure what docs/performance.md reports (Go for ghz; Java for Kafka)
	@$(BIN)/python -m tests.bench $(ARGS)

lock: $(READY) ## Resolve the dependencies anew into requirements/
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-annotate pyproject.toml -o requirements/runtime.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-annotate pyproject.toml --group dev --extra hsm --extra awskms -o requirements/dev.txt

clean: ## Remove what the other targets made
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
