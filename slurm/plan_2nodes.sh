#!/bin/bash
# How many nodes to ask for: measures for a few minutes on 2 nodes, and predicts the training on up to 4,096
# ranks, for each way to exchange. Flags go to jobs/plan.py.
#   sbatch slurm/plan_2nodes.sh --epochs 20 --batch-size 1024
# Leaves results/plan-JOBID/plan.md and logs/plan-JOBID.out. The nodes are ours alone: a neighbour's work would
# stand in our times. --cpus-per-task is to be that of the training.
#SBATCH --job-name=plan
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --exclusive
#SBATCH --time=00:15:00
source slurm/env.sh || { echo "error: $PWD is no clone. Fix: cd CLONE, sbatch again" >&2; exit 4; }

launch_ranks jobs/plan.py --out "results/plan-$SLURM_JOB_ID" "$@"
