# An MPI cluster job suite. `make bench` does everything from a fresh clone; `make help` lists the rest.
#
#: MPI=site        use the cluster's own MPI module instead of the wheel (remembered; MPI=wheel returns to the wheel)
#: GPU=1           TensorFlow with CUDA (remembered; GPU=0 returns to the CPU build)
#: PYTHON=...      interpreter for the environment, 3.10 to 3.13 (default: the first on PATH)
#: NP=4            ranks of mpi, multiworker, pipeline, federated, ddp, reinforcement, bench-step, scaling, plan;
#:                 devices of mirrored, custom, custom_dataset; both of bench
#: EPOCHS=5        passes over the training set
#: BATCH=64        global batch: examples of a step (reinforcement: environment steps of an update), over all ranks
#: MODEL=cnn       cnn, mlp, resnet, or package.module:function of your own
#: DATASET=...     fashion_mnist, mnist, cifar10, synthetic, synthetic_mnist, synthetic_cifar10
#: SEED=1          seed of the weights and of the order of the data; of make data, seed of the partition
#: SHARDS=4        number of shards that make data writes
#: REPEATS=3       runs of each strategy in bench; samples of bench-step, scaling and plan
#: STRATEGIES=...  comma list of strategies of bench: any of python -m mpi_train --help, and tuned
#: OUT=DIR         folder of the results
#: NODES=4         nodes of the local Slurm cluster, of bench-network, and of the job that submit makes
#: RATES=...       comma list of link rates of bench-network (default: 10gbit,1gbit,100mbit)
#: COLLECTIVES=... comma list of collectives of bench-network (default: those that differ on nodes with one rank
#:                 each) and of scaling (default: plain); any of python -m mpi_train mpi --help
#: STRATEGY=mpi    command that submit submits: any strategy of python -m mpi_train --help, tuned, bench or plan
#: TIME=01:00:00   time limit of that job
#: ARGS='...'      more flags, passed to the job or to pytest unchanged

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Choices of the last set-up, such as "wheel cpu /home/me/mpi-train"; they hold until changed. The path is part
# of them, because an environment that was moved or copied still points to the old place.
INSTALLED := $(shell cat .venv/installed 2>/dev/null)
MPI ?= $(or $(word 1,$(INSTALLED)),wheel)
GPU ?= $(if $(filter gpu,$(word 2,$(INSTALLED))),1,0)
BUILD := $(if $(filter-out 0,$(GPU)),gpu,cpu)

RUN := .venv/bin/python
PEERS := .venv-peers/bin/python
MPIEXEC = $(firstword $(wildcard .venv/bin/mpiexec) mpiexec)
RANKS = $(MPIEXEC) -n $(or $(NP),2) $(RUN)
PYTEST = $(RUN) -m pytest

# A flag is passed only for a variable that was set: the defaults are in the configs of mpi_train.
STEP = $(MODEL:%=--model %) $(BATCH:%=--batch-size %) $(SEED:%=--seed %) $(OUT:%=--out %) $(ARGS)
TRAINING = $(DATASET:%=--dataset %) $(EPOCHS:%=--epochs %) $(STEP)
DEVICES = $(NP:%=--devices %)
# Prepares the shards of a bench if they are missing; they are synthetic if neither DATASET nor the real data is given.
PREPARED = shards=$$($(RUN) jobs/prepare_data.py $(if $(DATASET),--dataset $(DATASET),--or-synthetic) \
	$(SHARDS:%=--shards %) | tee >(cat >&2) | tail -n 1)

.PHONY: help
help: ## List the targets and variables
	@echo 'Targets:'
	@awk -F ':.*## ' '/^[a-z_-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' Makefile
	@echo; echo 'Variables (make TARGET NAME=value):'
	@sed -n 's/^#: /  /p' Makefile

.PHONY: setup
setup: .venv/installed ## Make the environment in .venv: pinned packages, MPI and mpiexec; once, without root

ifneq ($(INSTALLED),$(MPI) $(BUILD) $(CURDIR))
.PHONY: .venv/installed
endif
.venv/installed: pyproject.toml requirements/setup.sh requirements/cpu.txt requirements/gpu.txt
	@PYTHON='$(PYTHON)' requirements/setup.sh $(MPI) $(BUILD) '$(CURDIR)'

.PHONY: peers
peers: setup .venv-peers/installed ## Make .venv-peers, an environment that also has PyTorch, for ddp

ifneq ($(shell cat .venv-peers/installed 2>/dev/null),$(MPI) peers $(CURDIR))
.PHONY: .venv-peers/installed
endif
.venv-peers/installed: pyproject.toml requirements/setup.sh requirements/peers.txt
	@PYTHON='$(PYTHON)' requirements/setup.sh $(MPI) peers '$(CURDIR)'

.PHONY: data
data: setup ## Write HDF5 shards to data/DATASET, from the official files
	$(RUN) jobs/prepare_data.py $(DATASET:%=--dataset %) $(SHARDS:%=--shards %) $(SEED:%=--seed %) $(ARGS)

.PHONY: bench
bench: setup ## Run every strategy on this machine; table, report and plots in results/bench
	@$(PREPARED); set -x; $(RUN) jobs/bench.py $(TRAINING) --dataset "$${shards##*/}" --data "$$shards" \
		$(NP:%=--np %) $(REPEATS:%=--repeats %) $(STRATEGIES:%=--strategies %)

.PHONY: bench-network
bench-network: setup ## Compare the collectives of mpi on slow links between NODES nodes (root, after make slurm-up)
	@$(PREPARED); set -x; $(RUN) jobs/bench_network.py $(TRAINING) --dataset "$${shards##*/}" --data "$$shards" \
		$(NODES:%=--nodes %) $(if $(RATES),--rates '$(RATES)') $(if $(COLLECTIVES),--collectives '$(COLLECTIVES)')

.PHONY: bench-step
bench-step: setup ## Measure the parts of a training step on NP ranks, and compare them with the machine's limits
	$(RANKS) jobs/bench_step.py $(REPEATS:%=--repeats %) $(STEP)

.PHONY: scaling
scaling: setup ## Measure steps on 1, 2, 4, … up to NP (default 8) ranks, and compare them with the prediction
	$(MPIEXEC) -n $(or $(NP),8) $(RUN) jobs/scaling.py $(REPEATS:%=--repeats %) \
		$(if $(COLLECTIVES),--collectives '$(COLLECTIVES)') $(STEP)

.PHONY: plan
plan: setup ## Predict training on 1 to 4,096 ranks from a short measurement on two, and recommend
	$(RANKS) jobs/plan.py $(EPOCHS:%=--epochs %) $(REPEATS:%=--repeats %) $(STEP)

.PHONY: report
report: setup ## Write the report of OUT (default results/bench) again
	$(RUN) jobs/report.py $(or $(OUT),results/bench) $(ARGS)

.PHONY: index
index: setup ## Write a page of all runs below OUT (default results), to filter and sort
	$(RUN) jobs/report.py --index $(or $(OUT),results)

.PHONY: watch
watch: setup ## Show the runs below OUT (default results) while they train, rank by rank; Ctrl-C leaves
	@$(RUN) jobs/watch.py $(OUT) $(ARGS)

.PHONY: baseline
baseline: setup ## Train in one process: plain Keras fit, all cores
	$(RUN) jobs/baseline.py $(TRAINING)

.PHONY: mpi
mpi: setup ## Train on NP ranks over MPI, averaging after every step
	$(RANKS) jobs/mpi.py $(TRAINING)

.PHONY: mirrored
mirrored: setup ## Train under MirroredStrategy: GPUs, or logical CPU devices
	$(RUN) jobs/mirrored.py $(TRAINING) $(DEVICES)

.PHONY: custom
custom: setup ## Train by hand-written data parallelism over the same devices
	$(RUN) jobs/custom.py $(TRAINING) $(DEVICES)

.PHONY: custom_dataset
custom_dataset: setup ## Train by strategy.run on TensorFlow's distributed dataset, over the same devices
	$(RUN) jobs/custom_dataset.py $(TRAINING) $(DEVICES)

.PHONY: multiworker
multiworker: setup ## Train on NP processes under MultiWorkerMirroredStrategy
	$(RANKS) jobs/multiworker.py $(TRAINING)

.PHONY: tpu
tpu: setup ## Train on a TPU, or on the best device there is
	$(RUN) jobs/tpu.py $(TRAINING)

.PHONY: pipeline
pipeline: setup ## Train by pipeline parallelism: a stage of the model on each of NP ranks
	$(RANKS) jobs/pipeline.py $(TRAINING)

.PHONY: federated
federated: setup ## Train by federated averaging over NP ranks; a client is a shard
	$(RANKS) jobs/federated.py $(TRAINING)

.PHONY: ddp
ddp: peers ## Train on NP ranks with PyTorch's DistributedDataParallel, as a yardstick
	$(MPIEXEC) -n $(or $(NP),2) $(PEERS) jobs/ddp.py $(TRAINING)

.PHONY: reinforcement
reinforcement: setup ## Run the example of reinforcement learning: PPO on CartPole over NP ranks; needs no data
	$(RANKS) examples/reinforcement.py $(BATCH:%=--batch-size %) $(SEED:%=--seed %) $(OUT:%=--out %) $(ARGS)

.PHONY: doctor
doctor: setup ## Check what this machine has and lacks: MPI and a ring over 2 ranks, TensorFlow, Slurm, data
	$(RUN) jobs/doctor.py

.PHONY: submit
submit: setup ## Submit STRATEGY (default mpi) to Slurm, on NODES nodes for TIME; ARGS=--print shows the script
	$(RUN) jobs/submit.py $(or $(STRATEGY),mpi) $(NODES:%=--nodes %) $(TIME:%=--time %) $(TRAINING)

.PHONY: test
test: setup ## Run the tests of at most 20 s each: plain, on 2 ranks, and on 4 those that show more there
	$(PYTEST) --durations=30 $(ARGS)
	. .venv/bin/activate && $(MPIEXEC:.venv/bin/%=%) -n 2 pytest --with-mpi $(ARGS)
	$(MPIEXEC) -n 4 $(PYTEST) --with-mpi -m 'mpi and ranks and not slow' --durations=10 $(ARGS)

.PHONY: test-fast
test-fast: setup ## Run the unit tests: those that start no program and train no model
	$(PYTEST) -m 'not launches and not trains and not slow and not slurm' $(ARGS)

.PHONY: test-slow
test-slow: setup ## Run the tests that take longer than 20 s each
	$(PYTEST) -m 'slow and not long and not slurm' --durations=30 $(ARGS)
	$(MPIEXEC) -n 2 $(PYTEST) --with-mpi -m 'mpi and slow and not long' $(ARGS)

.PHONY: test-peers
test-peers: peers ## Run the tests that need PyTorch
	$(PEERS) -m pytest -m peers $(ARGS)

.PHONY: test-slurm
test-slurm: setup ## Run the tests that need a Slurm cluster (make slurm-up)
	$(PYTEST) -m 'slurm and not slow' --durations=30 $(ARGS)

.PHONY: test-all
test-all: test test-slow test-slurm ## Run every test, also those that take minutes each
	$(PYTEST) -m 'long or (slurm and slow)' $(ARGS)

.PHONY: lint
lint: setup ## Run ruff, mypy and shellcheck
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	.venv/bin/shellcheck $(wildcard slurm/*.sh requirements/*.sh .ci/run) slurm/container/python

.PHONY: check
check: lint test ## Run what a change must pass: lint, then test

.PHONY: slurm-up
slurm-up: ## Start a Slurm cluster of NODES nodes on this machine (Debian or Ubuntu, root)
	slurm/local_cluster.sh up $(or $(NODES),4)

.PHONY: slurm-down
slurm-down: ## Stop that cluster
	slurm/local_cluster.sh down

.PHONY: slurm-status
slurm-status: ## Show the nodes and jobs of that cluster
	slurm/local_cluster.sh status

.PHONY: container
container: ## Build the environment as an Apptainer image, mpi-train.sif (needs apptainer and internet)
	apptainer build --build-arg BUILD=$(BUILD) mpi-train.sif slurm/container/mpi_train.def

.PHONY: wheelhouse
wheelhouse: setup ## Download the environment's packages to wheelhouse/, for a machine without internet
	$(RUN) -m pip download --quiet --dest wheelhouse --requirement requirements/$(BUILD).txt

LOCK = .venv/bin/uv --quiet pip compile --universal --python-version 3.10 --no-annotate --upgrade \
	--custom-compile-command 'make lock' --extra mpich --extra test --extra lint pyproject.toml
.PHONY: lock
lock: setup ## Resolve the pinned packages of requirements/ anew, for all Pythons and machines
	$(RUN) -m pip install --quiet uv
	$(LOCK) --extra cpu --output-file requirements/cpu.txt >/dev/null
	$(LOCK) --extra gpu --constraint requirements/cpu.txt --output-file requirements/gpu.txt >/dev/null
	$(LOCK) --extra cpu --extra peers --constraint requirements/cpu.txt --output-file requirements/peers.txt >/dev/null
	@# PyTorch's build for CUDA pins these itself; its build for CPUs wants none of them.
	sed -i '/^\(cuda\|nvidia\)-\|^triton/d' requirements/peers.txt

.PHONY: clean
clean: ## Remove the environment and all caches; data/ and results/ stay
	rm -rf .venv .venv-peers .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
