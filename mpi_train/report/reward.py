"""The picture of a run of reinforcement learning: its reward over time, and over what was played."""

from __future__ import annotations

from pathlib import Path

from mpi_train.reinforcement.record import ReinforcementRecord
from mpi_train.runtime import files


def draw(record: ReinforcementRecord, path: Path) -> None:
    """Writes the picture as PNG to ``path``."""
    # Without pyplot, so that no display is looked for and no figure stays open.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    ranks = f"{record.world_size} rank{'s' if record.world_size > 1 else ''}"
    figure.suptitle(
        f"{record.environment_name}: {record.num_envs} environments on {ranks}, seed {record.seed}"
    )
    # In some updates no episode ended.
    played = [update for update in record.updates if update.mean_reward is not None]
    rewards = [update.mean_reward for update in played]
    over_time, over_steps = figure.subplots(1, 2, sharey=True)
    over_time.plot([update.elapsed_s for update in played], rewards, color="#0072B2")
    over_time.set_xlabel("wall-clock time of the training [s]")
    over_time.set_ylabel("mean reward of the episodes that ended")
    steps = [update.env_steps / 1000 for update in played]
    over_steps.plot(steps, rewards, color="#0072B2", label="while learning")
    over_steps.set_xlabel("steps of all environments together [thousands]")
    for axes in (over_time, over_steps):
        axes.axhline(
            record.mean_reward,
            color="#D55E00",
            linestyle="--",
            label=f"evaluation, {len(record.episode_rewards)} episodes: {record.mean_reward:.1f}",
        )
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", linewidth=0.5)
    over_steps.legend(loc="lower right")
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
