"""What a run of reinforcement learning leaves behind: ``reinforcement.json`` (schema version 1).

Not a ``run.json``: there is no data set, and no test set on which it could be compared with the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FILE = "reinforcement.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class UpdateRecord:
    """One round of playing and learning.

    Attributes:
        update: Counted from 1.
        env_steps: Steps of all environments together, since the training began.
        elapsed_s: Since then, of the slowest rank.
        num_episodes: That ended in it, over all ranks.
        mean_reward: Mean over these episodes of the sum of their rewards; None where none ended.
    """

    update: int
    env_steps: int
    elapsed_s: float
    num_episodes: int
    mean_reward: float | None


@dataclass(frozen=True, kw_only=True)
class ReinforcementRecord:
    """One run: what was asked, what came out, where.

    Attributes:
        run_id: Its name (see ``mpi_train/runs/run_id.py``).
        command: The words that started it.
        environment_name: As Gymnasium has it.
        num_envs: Over all ranks together.
        batch_size: Steps of all environments together between two updates.
        learning_rate: At the start.
        env_steps: Of all environments together.
        train_s: From the first step to the end of the last update, of the slowest rank.
        eval_s: Time of the evaluation, of the slowest rank.
        mean_reward: Over the episodes of the evaluation.
        episode_rewards: Sum of the rewards of each of them.
        weights_sha256: Digest of the final weights, in layer order.
        startup_s: From the start of the process to the first step, of the slowest rank.
        peak_rss_mib: Of the rank with the most.
        environment: Hosts, processor, MPI, TensorFlow, commit, Slurm job (see ``runtime/machine.py``).
    """

    schema_version: int = SCHEMA_VERSION
    strategy: str = "reinforcement"
    run_id: str = ""
    command: str
    environment_name: str
    world_size: int
    threads_per_rank: int
    num_envs: int
    batch_size: int
    learning_rate: float
    seed: int
    updates: list[UpdateRecord]
    env_steps: int
    train_s: float
    eval_s: float
    mean_reward: float
    episode_rewards: list[float]
    weights_sha256: str
    startup_s: float
    peak_rss_mib: float
    environment: dict[str, Any]
