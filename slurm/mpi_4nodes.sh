#!/bin/bash
# Trains over MPI: one rank a node on 4 nodes, weights averaged after every step. Flags go to jobs/mpi.py.
#   sbatch slurm/mpi_4nodes.sh --epochs 10
#   sbatch --nodes=2 --ntasks-per-node=2 slurm/mpi_4nodes.sh --average gradients
# Writes results/mpi-JOBID/run.json and logs/mpi-JOBID.out.
# Two minutes before the time limit the job saves its state and is requeued, and then it resumes; likewise after
# a node has failed.
#SBATCH --job-name=mpi
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
source slurm/env.sh || { echo "error: $PWD is no clone. Fix: cd CLONE, sbatch again" >&2; exit 4; }

ranks mpi "$@"
