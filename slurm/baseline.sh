#!/bin/bash
# Trains in one process with plain Keras fit, on all cores of the job. Flags go to jobs/baseline.py.
#   sbatch slurm/baseline.sh --epochs 10
# Leaves results/baseline-JOBID/run.json and logs/baseline-JOBID.out.
#SBATCH --job-name=baseline
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=01:00:00
source slurm/env.sh || { echo "error: $PWD is no clone. To mend it: cd CLONE, sbatch again" >&2; exit 4; }

python jobs/baseline.py --out "results/baseline-$SLURM_JOB_ID" "$@"
