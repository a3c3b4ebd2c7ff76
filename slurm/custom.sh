#!/bin/bash
# Trains by hand-written data parallelism over the GPUs or cores of one node. Flags go to jobs/custom.py.
#   sbatch slurm/custom.sh --devices 2
# Leaves results/custom-JOBID/run.json and logs/custom-JOBID.out.
# Two minutes before the time is over it saves and is queued again, and goes on where it was; so too after a
# node has failed.
#SBATCH --job-name=custom
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
source slurm/env.sh || { echo "error: $PWD is no clone. Fix: cd CLONE, sbatch again" >&2; exit 4; }

run python jobs/custom.py --out "results/custom-$SLURM_JOB_ID" "$@"
