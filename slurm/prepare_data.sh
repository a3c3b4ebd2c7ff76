#!/bin/bash
# Cuts the raw data into HDF5 shards, in data/DATASET. Flags go to jobs/prepare_data.py.
#   sbatch slurm/prepare_data.sh --source /path/of/the/raw/files --shards 8
# Compute nodes seldom reach the internet: put the raw files in --source or FASHION_MNIST_DIR, or run make data
# on the login node instead. Writes logs/prepare_data-JOBID.out.
#SBATCH --job-name=prepare_data
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --time=00:15:00
source slurm/env.sh || { echo "error: $PWD is no clone. Fix: cd CLONE, sbatch again" >&2; exit 4; }

process prepare_data "$@"
