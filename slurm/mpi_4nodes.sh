#!/bin/bash
# Trains over MPI: one rank a node on 4 nodes, weights averaged after every step. Flags go to jobs/mpi.py.
#   sbatch slurm/mpi_4nodes.sh --epochs 10
#   sbatch --nodes=2 --ntasks-per-node=2 slurm/mpi_4nodes.sh --average gradients
# Leaves results/mpi-JOBID/run.json and logs/mpi-JOBID.out.
# Two minutes before the time is over it saves and is queued again, and goes on where it was; so too after a
# node has failed.
#SBATCH --job-name=mpi
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
source slurm/env.sh || { echo "error: $PWD is no clone. Fix: cd CLONE, sbatch again" >&2; exit 4; }

launch_ranks jobs/mpi.py --out "results/mpi-$SLURM_JOB_ID" "$@"
