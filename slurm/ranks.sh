#!/bin/bash
# Runs a command of the suite as MPI ranks, one rank a node: its name as in jobs/, then its flags.
#   sbatch --nodes=4 slurm/ranks.sh multiworker --epochs 10
#   sbatch --nodes=4 slurm/ranks.sh federated --data data/clients --epochs 10 --fraction 0.5
#   sbatch slurm/ranks.sh pipeline --micro-batches 8
#   sbatch --exclusive --time=00:15:00 slurm/ranks.sh plan --epochs 20 --batch-size 1024
# Writes results/NAME-JOBID, unless --out names another folder, and logs/NAME-JOBID.out. A training is saved and
# requeued two minutes before the time limit, and then it resumes; likewise after a node has failed.
#SBATCH --job-name=ranks
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
source slurm/env.sh || { echo "error: $PWD is no clone. Fix: cd CLONE, sbatch again" >&2; exit 4; }

ranks "$@"
