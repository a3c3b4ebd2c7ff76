#!/bin/bash
# Trains a model in two stages, one a node: activations go from the first to the second, gradients back. Flags go to
# jobs/pipeline.py.
#   sbatch slurm/pipeline_2nodes.sh --epochs 10 --micro-batches 8
#   sbatch --nodes=4 slurm/pipeline_2nodes.sh --stages 2
# Leaves results/pipeline-JOBID/run.json and logs/pipeline-JOBID.out.
#SBATCH --job-name=pipeline
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
source slurm/env.sh || { echo "error: $PWD is no clone. Fix: cd CLONE, sbatch again" >&2; exit 4; }

launch_ranks jobs/pipeline.py --out "results/pipeline-$SLURM_JOB_ID" "$@"
