#!/bin/bash
# Federated learning: one rank a node on 4 nodes, each training the clients whose shards it holds. Flags go to
# jobs/federated.py.
#   sbatch slurm/prepare_data.sh --shards 10 --partition dirichlet --alpha 0.3 --data data/clients
#   sbatch slurm/federated.sh --data data/clients --epochs 10 --fraction 0.5
# Leaves results/federated-JOBID with run.json, rounds.jsonl and clients.png, and logs/federated-JOBID.out.
# Two minutes before the time is over it saves and is queued again, and goes on where it was; so too after a
# node has failed.
#SBATCH --job-name=federated
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
source slurm/env.sh || { echo "error: $PWD is no clone. Fix: cd CLONE, sbatch again" >&2; exit 4; }

launch_ranks jobs/federated.py --out "results/federated-$SLURM_JOB_ID" "$@"
