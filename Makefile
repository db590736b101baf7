# Ten thin names. Each sets up first; a set-up that is current costs a fraction of a second.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
# Told not to write bytecode, as in many images, each of the processes that follow would compile all
# that it imports: that is most of their start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup up test lint type proto lock bench docs clean

setup: ## create .venv from the locks
	@$(PYTHON) dev/bootstrap.py

up: setup ## bring everything up and serve the sample models
	@$(BIN)/python -m inferbus_dev up $(ARGS)

test: setup ## run the tests on real servers, two at a time
	@$(BIN)/python -m pytest $(or $(ARGS),-n 2 --dist loadfile --no-loadscope-reorder)

lint: setup ## style, import rules, contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@cd schemas && ../$(BIN)/buf lint && ../$(BIN)/buf breaking --against baseline.binpb

type: setup ## static types
	@$(BIN)/mypy

proto: setup ## regenerate the messages of the bus and of the gRPC listener
	@$(BIN)/python schemas/generate.py
	@$(BIN)/python services/gateway/generate_grpc.py

lock: setup ## resolve the locks anew from locks/*.in
	@cd locks && for name in gateway control worker-cpu dev; do \
	  ../$(BIN)/uv pip compile $$name.in --config-file uv.toml --universal --generate-hashes \
	    --no-emit-index-url --no-header --no-annotate --python-version 3.11 --quiet -o $$name.txt || exit 1; done
	@cd tests/conformance/clients && for name in triton kserve perf schemathesis s3; do \
	  ../../../$(BIN)/uv pip compile $$name.in --config-file uv.toml --universal --generate-hashes \
	    --no-emit-index-url --no-header --no-annotate --python-version 3.11 --quiet -o $$name.txt || exit 1; done
	@$(BIN)/python -m inferbus_dev lock-jars

bench: setup ## measure; results go to bench/results
	@$(BIN)/python -m bench $(ARGS)

docs: setup ## rewrite the tables that are made from code
	@$(BIN)/python -m tests.gateway.test_gateway_readme
	@$(BIN)/python -c "from inferbus_schemas import asyncapi; print(asyncapi.text(), end='')" > schemas/asyncapi.yaml

clean: ## remove the environment and all state
	rm -rf .venv .inferbus .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
