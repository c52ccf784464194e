# Every chore of the project, one command each. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup run test model conformance conformance-sidecar differential fuzz rehearse load
.PHONY: chaos bench-quick bench-outage bench-firestore bench-postgres bench-backfill beam
.PHONY: bench-shadow bench-telemetry rehearse-ramp bench-validate bench-memory plan hang
.PHONY: lint format proto docs schemas collector lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## virtual environment with everything in it

$(STAMP): requirements.lock pyproject.toml proto/pyproject.toml clients/python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e proto -e clients/python -e .
	@touch $(STAMP)

run: setup ## the whole stack with live sample traffic; Ctrl-C stops it
	$(BIN)/crossfade up

# A file's tests stay together; what one process makes (servers, databases) is its own.
test: setup ## every test that needs only Python and make, in as many processes as there are CPUs
	$(BIN)/pytest -q -n logical --maxprocesses 4 --dist loadfile

model: setup ## every state the protocol can reach: it holds, and without any one rule it does not
	$(BIN)/python -m tests.model

conformance: setup ## the Python client's own system tests against the embedded Firestore
	$(BIN)/python -m tests.conformance

conformance-sidecar: setup ## the same against a sidecar in every stage
	for stage in off dual_write shadow live ramp_down complete; do \
		$(BIN)/python -m tests.conformance --stage $$stage || exit 1; \
	done

differential: setup ## 50,000 random databases, here and on the official emulator; 20,000 on PostgreSQL
	$(BIN)/python -m tests.differential

fuzz: setup ## hostile requests to the embedded Firestore; CROSSFADE_FUZZ_SEED and _REQUESTS replay
	CROSSFADE_FUZZ_REQUESTS=$${CROSSFADE_FUZZ_REQUESTS:-100000} \
		CROSSFADE_FUZZ_SEED=$${CROSSFADE_FUZZ_SEED:-$$(date +%s)} \
		$(BIN)/pytest -q -s tests/fuzz

chaos: setup ## 500 kills at every step of the protocol, every fault, each law without its mechanism
	FAULT_ALL=1 $(BIN)/pytest -q tests/fault/test_faults.py tests/fault/test_long_faults.py
	$(BIN)/python -m tests.fault

hang: setup ## a mirror that says nothing for 30 s; the tests have a shorter one in proportion
	HANG_SECONDS=30 $(BIN)/pytest -q tests/integration/test_shadow_reads.py -k hangs

plan: setup ## every command that replaces a script of the migration plan, in order
	$(BIN)/pytest -q tests/acceptance/plan_scripts.py

rehearse: setup ## walk a throwaway stack through every stage and compare both stores
	$(BIN)/crossfade rehearse

rehearse-ramp: setup ## three ramps under 100,000 reads each: a mirror that is spoilt, that fails, that is slow
	$(BIN)/python -m loadtests.ramp

load: setup ## Locust against a throwaway stack, HTML report in build/
	$(BIN)/python -m loadtests.load

bench-quick: setup ## the request path against the bare stack and the alternatives, as ratios
	$(BIN)/python -m loadtests.bench

bench-firestore: setup ## the embedded Firestore against a bare handler, as ratios; its memory
	$(BIN)/python -m loadtests.firestore

bench-outage: setup ## what callers notice while only the mirror is away, as ratios
	$(BIN)/python -m loadtests.outage

bench-shadow: setup ## what comparing every read costs those who wait for answers, as ratios
	$(BIN)/python -m loadtests.shadow

bench-telemetry: setup ## what is left of the throughput while traces and metrics are exported
	$(BIN)/python -m loadtests.telemetry

bench-postgres: setup ## the PostgreSQL store against the bare driver, a million tasks against ten thousand
	$(BIN)/python -m loadtests.postgres

bench-validate: setup ## a full validation against draining the same pages; its memory at a million documents
	$(BIN)/python -m loadtests.validate

bench-backfill: setup ## the copy against a plain drain and a plain script, as ratios; callers beside it
	$(BIN)/python -m loadtests.backfill

bench-memory: setup ## what a copy holds of a million documents, against a hundred thousand
	$(BIN)/python -m loadtests.backfill --only memory

lint: setup ## ruff, mypy, import stack, generated code and tables
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check
	$(BIN)/python docs/generate.py --check

format: setup ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: setup ## regenerate proto/gen from the .proto files
	$(BIN)/python proto/generate.py

docs: setup ## rewrite the table of instruments in docs/telemetry.md
	$(BIN)/python docs/generate.py

schemas: setup ## what checks deploy/ against the schemas of Compose and Kubernetes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/schemas.lock

collector: setup ## a collector of somebody else's, for the test that sends to it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/collector.lock

beam: setup ## Apache Beam, for `crossfade backfill --runner` and its test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r loadtests/beam.lock

lock: setup ## resolve the dependencies anew: versions and hashes, no addresses
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--exclude-newer "1 week" --no-emit-package crossfade-api --no-emit-package crossfade-client \
		--no-annotate --custom-compile-command "make lock" \
		--group dev --constraint constraints.txt -o requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--exclude-newer "1 week" --no-annotate --custom-compile-command "make lock" \
		--constraint requirements.lock -o deploy/schemas.lock deploy/schemas.in
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--exclude-newer "1 week" --no-annotate --custom-compile-command "make lock" \
		--constraint requirements.lock -o deploy/collector.lock deploy/collector.in
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--exclude-newer "1 week" --no-annotate --custom-compile-command "make lock" \
		--constraint requirements.lock -o loadtests/beam.lock loadtests/beam.in

clean: ## remove what the other targets made
	rm -rf .venv build .crossfade tests/node/node_modules clients/typescript/node_modules \
		clients/typescript/build .mypy_cache .ruff_cache .pytest_cache .hypothesis
