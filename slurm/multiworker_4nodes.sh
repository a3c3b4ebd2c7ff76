#!/bin/bash
# Trains under MultiWorkerMirroredStrategy: one process a node on 4 nodes, TensorFlow's own all-reduce. Flags go to
# jobs/multiworker.py.
#   sbatch slurm/multiworker_4nodes.sh --epochs 10
#   sbatch --nodes=2 slurm/multiworker_4nodes.sh
# Leaves results/multiworker-JOBID/run.json and logs/multiworker-JOBID.out. Its processes find each other by host
# name, at TCP ports between 20000 and 29999 that follow from the job's number.
#SBATCH --job-name=multiworker
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
source slurm/env.sh || { echo "error: $PWD is no clone. Fix: cd CLONE, sbatch again" >&2; exit 4; }

launch_ranks jobs/multiworker.py --out "results/multiworker-$SLURM_JOB_ID" "$@"
