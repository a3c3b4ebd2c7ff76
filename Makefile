# An MPI cluster job suite. `make bench` does everything from a fresh clone; `make help` lists the rest.
#
#: MPI=site        leave the MPI wheel out and use the cluster's own module (remembered; MPI=wheel goes back)
#: GPU=1           TensorFlow with CUDA (remembered; GPU=0 goes back)
#: PYTHON=...      interpreter for the environment, 3.10 to 3.13 (default: the first on PATH)
#: NP=4            ranks of mpi, multiworker, pipeline, federated, reinforcement, ddp, bench-step, scaling, plan;
#:                 devices of mirrored, custom and custom_dataset
#: EPOCHS=5        passes over the training set
#: BATCH=64        global batch: examples a step (of reinforcement, steps played an update), over all ranks together
#: MODEL=cnn       cnn, mlp, resnet, or package.module:function of your own
#: DATASET=...     fashion_mnist, mnist, cifar10; drawn: synthetic, synthetic_mnist, synthetic_cifar10
#: SEED=1          of the weights and the order of the data; for make data, of the partition
#: SHARDS=4        shards that make data writes
#: REPEATS=3       times that make bench runs each strategy; samples that bench-step, scaling and plan take
#: STRATEGIES=...  which ones make bench runs: baseline,tuned,mpi,mirrored,custom,custom_dataset,multiworker,tpu,
#:                 pipeline,federated,ddp
#: OUT=DIR         folder of the results
#: NODES=4         nodes of the local Slurm cluster, also for bench-network; of the job that make submit submits
#: RATES=...       what each node's link lets through in bench-network (default: 10gbit,1gbit,100mbit)
#: COLLECTIVES=... what bench-network compares (default: those of jobs/mpi.py, but for auto and hierarchical);
#:                 what scaling measures (default: plain)
#: STRATEGY=mpi    what make submit submits: mpi, baseline, mirrored, custom, multiworker, pipeline, federated,
#:                 bench
#: TIME=01:00:00   its time limit
#: ARGS='...'      more flags, passed on to the job or to pytest as they stand

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# What the environment holds, such as "wheel cpu /home/me/mpi-train"; its choices hold until changed. The
# path is part of it, as an environment that was moved or copied still points to the old place.
INSTALLED := $(shell cat .venv/installed 2>/dev/null)
MPI ?= $(or $(word 1,$(INSTALLED)),wheel)
GPU ?= $(if $(filter gpu,$(word 2,$(INSTALLED))),1,0)
BUILD := $(if $(filter-out 0,$(GPU)),gpu,cpu)

RUN := .venv/bin/python
PEERS := .venv-peers/bin/python
MPIEXEC = $(firstword $(wildcard .venv/bin/mpiexec) mpiexec)
RANKS = $(MPIEXEC) -n $(or $(NP),2) $(RUN)
PYTEST = $(RUN) -m pytest

# A flag is passed only for a variable that was set: the defaults live in mpi_train/runs/config.py.
STEP = $(MODEL:%=--model %) $(BATCH:%=--batch-size %) $(SEED:%=--seed %) $(OUT:%=--out %) $(ARGS)
TRAINING = $(DATASET:%=--dataset %) $(EPOCHS:%=--epochs %) $(STEP)
DEVICES = $(NP:%=--devices %)
# The folder of the shards that a bench is to take, made where it is not there; drawn ones where nothing was asked for.
PREPARED = shards=$$($(RUN) jobs/prepare_data.py $(if $(DATASET),--dataset $(DATASET),--or-synthetic) \
	$(SHARDS:%=--shards %) | tee >(cat >&2) | tail -n 1)

.PHONY: help
help: ## This list
	@echo 'Targets:'
	@awk -F ':.*## ' '/^[a-z_-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' Makefile
	@echo; echo 'Variables (make TARGET NAME=value):'
	@sed -n 's/^#: /  /p' Makefile

.PHONY: setup
setup: .venv/installed ## The environment in .venv: pinned packages, MPI and mpiexec; once, without root

ifneq ($(INSTALLED),$(MPI) $(BUILD) $(CURDIR))
.PHONY: .venv/installed
endif
.venv/installed: pyproject.toml requirements/setup.sh requirements/cpu.txt requirements/gpu.txt
	@PYTHON='$(PYTHON)' requirements/setup.sh $(MPI) $(BUILD) '$(CURDIR)'

.PHONY: peers
peers: setup .venv-peers/installed ## An environment with PyTorch too, .venv-peers, for ddp; nothing else needs it

ifneq ($(shell cat .venv-peers/installed 2>/dev/null),$(MPI) peers $(CURDIR))
.PHONY: .venv-peers/installed
endif
.venv-peers/installed: pyproject.toml requirements/setup.sh requirements/peers.txt
	@PYTHON='$(PYTHON)' requirements/setup.sh $(MPI) peers '$(CURDIR)'

.PHONY: data
data: setup ## HDF5 shards in data/DATASET, from the official files
	$(RUN) jobs/prepare_data.py $(DATASET:%=--dataset %) $(SHARDS:%=--shards %) $(SEED:%=--seed %) $(ARGS)

.PHONY: bench
bench: setup ## Every strategy on this machine, then table, report and plots in results/bench
	@$(PREPARED); set -x; $(RUN) jobs/bench.py $(TRAINING) --dataset "$${shards##*/}" --data "$$shards" \
		$(NP:%=--np %) $(REPEATS:%=--repeats %) $(STRATEGIES:%=--strategies %)

.PHONY: bench-network
bench-network: setup ## The collectives of mpi on slow links between NODES nodes (as root, after make slurm-up)
	@$(PREPARED); set -x; $(RUN) jobs/bench_network.py $(TRAINING) --dataset "$${shards##*/}" --data "$$shards" \
		$(NODES:%=--nodes %) $(if $(RATES),--rates '$(RATES)') $(if $(COLLECTIVES),--collectives '$(COLLECTIVES)')

.PHONY: bench-step
bench-step: setup ## Where the time of one training step goes on NP ranks, and how near it is to the limits
	$(RANKS) jobs/bench_step.py $(REPEATS:%=--repeats %) $(STEP)

.PHONY: scaling
scaling: setup ## Measure steps on 1, 2, 4, … up to NP (default 8) ranks, beside what is predicted from two
	$(MPIEXEC) -n $(or $(NP),8) $(RUN) jobs/scaling.py $(REPEATS:%=--repeats %) \
		$(if $(COLLECTIVES),--collectives '$(COLLECTIVES)') $(STEP)

.PHONY: plan
plan: setup ## Predict training on 1 to 4,096 ranks from a short measurement on two, and advise
	$(RANKS) jobs/plan.py $(EPOCHS:%=--epochs %) $(REPEATS:%=--repeats %) $(STEP)

.PHONY: report
report: setup ## Write the report of OUT (default results/bench) again
	$(RUN) jobs/report.py $(or $(OUT),results/bench) $(ARGS)

.PHONY: index
index: setup ## A page of all runs below OUT (default results), to filter and sort
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
custom: setup ## Train by data parallelism written by hand over the same devices
	$(RUN) jobs/custom.py $(TRAINING) $(DEVICES)

.PHONY: custom_dataset
custom_dataset: setup ## Train by strategy.run over a dataset that TensorFlow distributes, over the same devices
	$(RUN) jobs/custom_dataset.py $(TRAINING) $(DEVICES)

.PHONY: multiworker
multiworker: setup ## Train on NP processes under MultiWorkerMirroredStrategy
	$(RANKS) jobs/multiworker.py $(TRAINING)

.PHONY: tpu
tpu: setup ## Train on a TPU, or on what there is instead
	$(RUN) jobs/tpu.py $(TRAINING)

.PHONY: pipeline
pipeline: setup ## Train the stages of a model on NP ranks, through which the examples flow
	$(RANKS) jobs/pipeline.py $(TRAINING)

.PHONY: federated
federated: setup ## Federated averaging over NP ranks; a client is a shard
	$(RANKS) jobs/federated.py $(TRAINING)

.PHONY: ddp
ddp: peers ## Train on NP ranks with PyTorch's DistributedDataParallel, as a yardstick
	$(MPIEXEC) -n $(or $(NP),2) $(PEERS) jobs/ddp.py $(TRAINING)

.PHONY: reinforcement
reinforcement: setup ## Reinforcement learning on CartPole: NP ranks play, and improve one policy; needs no data
	$(RANKS) jobs/reinforcement.py $(BATCH:%=--batch-size %) $(SEED:%=--seed %) $(OUT:%=--out %) $(ARGS)

.PHONY: doctor
doctor: setup ## What this machine has and lacks: MPI and a ring over 2 ranks, TensorFlow, Slurm, data
	$(RUN) jobs/doctor.py

.PHONY: submit
submit: setup ## Submit STRATEGY (default mpi) to Slurm, on NODES nodes for TIME; ARGS=--print shows the script
	$(RUN) jobs/submit.py $(or $(STRATEGY),mpi) $(NODES:%=--nodes %) $(TIME:%=--time %) $(TRAINING)

.PHONY: test
test: setup ## The tests of at most 20 s each: plain, on 2 ranks, and on 4 those that show more there
	$(PYTEST) --durations=30 $(ARGS)
	$(MPIEXEC) -n 2 $(PYTEST) --with-mpi -m 'mpi and not slow' --durations=10 $(ARGS)
	$(MPIEXEC) -n 4 $(PYTEST) --with-mpi -m 'mpi and ranks and not slow' --durations=10 $(ARGS)

.PHONY: test-fast
test-fast: setup ## The unit tests: those that start no program and train no model
	$(PYTEST) -m 'not launches and not trains and not slow and not slurm' $(ARGS)

.PHONY: test-slow
test-slow: setup ## The tests that take longer than 20 s each
	$(PYTEST) -m 'slow and not long and not slurm' --durations=30 $(ARGS)
	$(MPIEXEC) -n 2 $(PYTEST) --with-mpi -m 'mpi and slow and not long' $(ARGS)

.PHONY: test-peers
test-peers: peers ## The tests that need PyTorch
	$(PEERS) -m pytest -m peers $(ARGS)

.PHONY: test-slurm
test-slurm: setup ## The tests that need a Slurm cluster (make slurm-up)
	$(PYTEST) -m 'slurm and not slow' --durations=30 $(ARGS)

.PHONY: test-all
test-all: test test-slow test-slurm ## Every test, also those that take minutes each
	$(PYTEST) -m 'long or (slurm and slow)' $(ARGS)

.PHONY: lint
lint: setup ## ruff, mypy and shellcheck
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	.venv/bin/shellcheck $(wildcard slurm/*.sh requirements/*.sh .ci/run) slurm/container/python

.PHONY: check
check: lint test ## What a change must pass: lint, then test

.PHONY: slurm-up
slurm-up: ## A Slurm cluster of NODES nodes on this machine (Debian or Ubuntu, root)
	slurm/local_cluster.sh up $(or $(NODES),4)

.PHONY: slurm-down
slurm-down: ## Stop it
	slurm/local_cluster.sh down

.PHONY: slurm-status
slurm-status: ## Its nodes and jobs
	slurm/local_cluster.sh status

.PHONY: container
container: ## The environment as an Apptainer image, mpi-train.sif (needs apptainer and internet)
	apptainer build --build-arg BUILD=$(BUILD) mpi-train.sif slurm/container/mpi_train.def

.PHONY: wheelhouse
wheelhouse: setup ## The environment's packages in wheelhouse/, for a machine without internet
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
