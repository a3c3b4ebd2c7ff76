#!/bin/bash
# Trains in one process with plain Keras fit, on all cores of the job. Flags go to jobs/baseline.py.
#   sbatch slurm/baseline.sh --epochs 10
# Leaves results/baseline-JOBID/run.json and logs/baseline-JOBID.out.
# Two minutes before the time is over it saves and is queued again, and goes on where it was; so too after a
# node has failed.
#SBATCH --job-name=baseline
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
source slurm/env.sh || { echo "error: $PWD is no clone. Fix: cd CLONE, sbatch again" >&2; exit 4; }

run python jobs/baseline.py --out "results/baseline-$SLURM_JOB_ID" "$@"
