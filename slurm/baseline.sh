#!/bin/bash
# Trains in one process with plain Keras fit, on all cores of the job. Flags go to jobs/baseline.py.
#   sbatch slurm/baseline.sh --epochs 10
# Writes results/baseline-JOBID/run.json and logs/baseline-JOBID.out.
# Two minutes before the time limit the job saves its state and is requeued, and then it resumes; likewise after
# a node has failed.
#SBATCH --job-name=baseline
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
source slurm/env.sh || { echo "error: $PWD is no clone. Fix: cd CLONE, sbatch again" >&2; exit 4; }

process baseline "$@"
