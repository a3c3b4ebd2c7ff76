#!/bin/bash
# Compares the strategies, one after another on one node. Flags go to jobs/bench.py.
#   sbatch slurm/bench.sh --repeats 3 --np 4
# Leaves results/bench-JOBID/report.md and logs/bench-JOBID.out. The node is ours alone: a neighbour's work
# would stand in our times.
#SBATCH --job-name=bench
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --exclusive
#SBATCH --time=02:00:00
source slurm/env.sh || { echo "error: $PWD is no clone. Fix: cd CLONE, sbatch again" >&2; exit 4; }

python jobs/bench.py --out "results/bench-$SLURM_JOB_ID" "$@"
