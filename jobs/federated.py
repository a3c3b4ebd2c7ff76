"""Federated learning over MPI: ranks train the clients whose shards they hold, a server averages the models.

    python jobs/prepare_data.py --shards 10 --partition dirichlet --alpha 0.3 --data data/clients
    mpiexec -n 2 python jobs/federated.py --data data/clients --epochs 10 --fraction 0.5
    mpiexec -n 2 python jobs/federated.py --data data/clients --proximal 0.01
    sbatch slurm/federated.sh --epochs 10

A client is a shard. Leaves in --out (default: results/federated) run.json, events.jsonl, epochs.csv and
checkpoints; rounds.jsonl (what each client of each round told); clients.json and clients.png (what data
each client has, and how the final model does on it).
"""

from mpi_train.cli import run_training
from mpi_train.runs.config import FederatedConfig

if __name__ == "__main__":
    run_training("federated", FederatedConfig, description="Federated averaging over MPI ranks.", mpi=True)
