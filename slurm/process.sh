#!/bin/bash
# Runs a command of the suite as one process: its name as in jobs/, then its flags.
#   sbatch slurm/process.sh custom --devices 2
#   sbatch --gpus-per-node=2 slurm/process.sh custom_dataset --epochs 10
# Writes results/NAME-JOBID, unless --out names another folder, and logs/NAME-JOBID.out. A training is saved and
# requeued two minutes before the time limit, and then it resumes; likewise after a node has failed.
#SBATCH --job-name=process
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
source slurm/env.sh || { echo "error: $PWD is no clone. Fix: cd CLONE, sbatch again" >&2; exit 4; }

process "$@"
