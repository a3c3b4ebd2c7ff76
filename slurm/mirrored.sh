#!/bin/bash
# Trains under MirroredStrategy over the GPUs or cores of one node. Flags go to jobs/mirrored.py.
#   sbatch slurm/mirrored.sh --devices 2
# Writes results/mirrored-JOBID/run.json and logs/mirrored-JOBID.out.
# Two minutes before the time limit the job saves its state and is requeued, and then it resumes; likewise after
# a node has failed.
#SBATCH --job-name=mirrored
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
source slurm/env.sh || { echo "error: $PWD is no clone. Fix: cd CLONE, sbatch again" >&2; exit 4; }

process mirrored "$@"
