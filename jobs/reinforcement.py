"""Reinforcement learning over MPI: ranks play environments of their own and average one policy's gradients.

    python jobs/reinforcement.py
    mpiexec -n 2 python jobs/reinforcement.py --seed 2
    mpiexec -n 4 python jobs/reinforcement.py --num-envs 32 --batch-size 8192 --updates 100

Plays Gymnasium's CartPole-v1, so it needs no data set. Leaves in --out (default: results/reinforcement)
reinforcement.json (the record, with the evaluation's 20 episodes), reward.png (reward over time) and
events.jsonl.
"""

from mpi_train.cli import run_training
from mpi_train.runs.config import ReinforcementConfig

if __name__ == "__main__":
    run_training(
        "reinforcement", ReinforcementConfig, description="Reinforcement learning over MPI ranks.", mpi=True
    )
