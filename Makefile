# The two commands of the README: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= $(shell command -v python3.13 >/dev/null 2>&1 && python3.13 -c '' 2>/dev/null && echo python3.13 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc)
SHORT := build/bench
PUBLISHED := bench/results

.PHONY: help install demo test lint types unit system bench bench-publish bench-peers clean

help: ## show the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

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

# What is published stays as it is: the short suite says how this machine does, in a folder that git leaves alone.
bench: $(BIN)/.ready ## the short benchmarks, five minutes; results and a page of them in build/bench
	mkdir -p $(SHORT)
	$(BIN)/python -m bench --rounds 2 --disk-records 6000000 -o $(SHORT)/main_path.json
	$(BIN)/zbroker bench scale --workers 1,2,4 --partitions 1,4,16 --rounds 2 -q -o $(SHORT)/scale.json
	$(BIN)/zbroker bench scale --many 1,10,100,1000 --readers 1,2,5,20 --logs 16,64 --rounds 1 -q -o $(SHORT)/costs.json
	$(BIN)/zbroker bench claims --rounds 1 -q -o $(SHORT)/claims.json
	$(BIN)/zbroker bench report $(SHORT)/*.json -o $(SHORT)/report.html

bench-publish: $(BIN)/.ready ## the long ones, half an hour; results and plots in bench/results, tables in the documents
	$(BIN)/python -m bench --rounds 9 --disk-records 6000000
	$(BIN)/zbroker bench scale --workers 1,2,4 --partitions 1,4,16 --rounds 5 -q -o $(PUBLISHED)/scale.json
	$(BIN)/zbroker bench scale --many 1,10,100,1000 --readers 1,2,5,10,25,50 --logs 16,64,256,1024 --rounds 1 -q -o $(PUBLISHED)/costs.json
	$(BIN)/zbroker bench claims --rounds 3 -q -o $(PUBLISHED)/claims.json
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
