# The two commands of the README: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= $(shell command -v python3.13 >/dev/null 2>&1 && python3.13 -c '' 2>/dev/null && echo python3.13 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc)

.PHONY: help install demo test lint types unit system bench bench-peers clean

help: ## show the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(BIN)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zbroker needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(BIN)/python -m compileall -q zbroker shm workers # as pip does where it copies a package: starts compile nothing
	touch $@

install: $(BIN)/.ready ## make .venv with zbroker and its development tools

demo: $(BIN)/.ready ## start a broker in a temporary directory, run the main job, print a report, clean up
	$(BIN)/zbroker demo

test: lint types unit system ## every check and test; .ci/run calls this

lint: $(BIN)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/.ready
	$(BIN)/mypy

unit: $(BIN)/.ready ## tests that start no broker
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile tests --ignore=tests/system --ignore=tests/fault

system: $(BIN)/.ready ## tests with real processes and faults
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile tests/system tests/fault

bench: $(BIN)/.ready ## the short benchmarks, five minutes; results and plots in bench/results, tables in the documents
	$(BIN)/python -m bench --rounds 2 --disk-records 6000000
	$(BIN)/zbroker bench scale --workers 1,2,4 --partitions 1,4,16 --rounds 2 -q -o bench/results/scale.json
	$(BIN)/zbroker bench scale --many 1,10,100,1000 --readers 1,2,5,20 --logs 16,64 --rounds 1 -q -o bench/results/costs.json
	$(BIN)/zbroker bench claims --rounds 1 -q -o bench/results/claims.json
	$(BIN)/python -m bench.readme

bench-peers: $(BIN)/.ready-peers ## zbroker beside Kafka, Redis, NATS and RabbitMQ, as far as they are installed
	$(BIN)/python -m bench.peers $(PEERS_OPTIONS)

# Kafka's jars are left out where there is no Maven: the comparison says then how to get them.
$(BIN)/.ready-peers: $(BIN)/.ready bench/peers/kafka-pom.xml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[peers]'
	if command -v mvn >/dev/null && command -v java >/dev/null; then mvn -q -B -f bench/peers/kafka-pom.xml package; fi
	touch $@

clean: ## remove .venv and caches
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
