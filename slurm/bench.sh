#!/bin/bash
# Compares the strategies, one after another on one node. Flags go to jobs/bench.py.
#   sbatch slurm/bench.sh --repeats 3 --np 4
# Writes results/bench-JOBID/report.md and logs/bench-JOBID.out. The job does not share its node, because other
# jobs would change the times.
#SBATCH --job-name=bench
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --exclusive
#SBATCH --time=02:00:00
source slurm/env.sh || { echo "error: $PWD is no clone. Fix: cd CLONE, sbatch again" >&2; exit 4; }

process bench "$@"
