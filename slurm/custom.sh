#!/bin/bash
# Trains by hand-written data parallelism over the GPUs or cores of one node. Flags go to jobs/custom.py.
#   sbatch slurm/custom.sh --devices 2
# Leaves results/custom-JOBID/run.json and logs/custom-JOBID.out.
#SBATCH --job-name=custom
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=01:00:00
source slurm/env.sh || { echo "error: $PWD is no clone. To mend it: cd CLONE, sbatch again" >&2; exit 4; }

python jobs/custom.py --out "results/custom-$SLURM_JOB_ID" "$@"
