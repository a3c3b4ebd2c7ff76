"""Train by federated averaging: ranks train the clients whose shards they hold.

    python jobs/prepare_data.py --shards 10 --partition dirichlet --alpha 0.3 --data data/clients
    mpiexec -n 2 python jobs/federated.py --data data/clients --epochs 10 --fraction 0.5
    mpiexec -n 2 python jobs/federated.py --data data/clients --proximal 0.01
    sbatch slurm/ranks.sh federated --data data/clients --epochs 10

A client is a shard. Writes to --out (default: results/federated): run.json, events.jsonl, epochs.csv and
checkpoints; rounds.jsonl (the reports of the clients of each round); clients.json and clients.png (the data
of each client, and the accuracy of the final model on it).
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("federated")
