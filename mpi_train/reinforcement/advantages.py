"""How much better an action was than what the value function had expected: plain arithmetic on arrays."""

from __future__ import annotations

import numpy as np

from mpi_train.runtime.world import World


def estimate(
    rewards: np.ndarray,
    values: np.ndarray,
    next_values: np.ndarray,
    terminated: np.ndarray,
    ended: np.ndarray,
    *,
    discount: float,
    decay: float,
) -> np.ndarray:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, equation 16).

    All arrays are (num_steps, num_envs), in the order of time.

    Args:
        rewards: Of each step.
        values: Expected from the state before each step.
        next_values: Expected from the state after it; where an episode ended, from its last state.
        terminated: Whether the episode came to its own end, after which there is no reward. One that was cut
            off by a limit of time would have gone on, so that its last state keeps its value.
        ended: Whether it ended in either way: what follows belongs to another episode.
        discount: What a reward is worth a step later.
        decay: How fast the weight of later surprises falls: 0 trusts the values, 1 the rewards.

    Returns:
        float64 (num_steps, num_envs).
    """
    surprises = rewards + discount * next_values * ~terminated - values
    advantages = np.zeros(surprises.shape, np.float64)
    later = np.zeros(surprises.shape[1])
    for step in reversed(range(len(surprises))):
        later = surprises[step] + discount * decay * later * ~ended[step]
        advantages[step] = later
    return advantages


def standardise(advantages: np.ndarray, world: World) -> np.ndarray:
    """Shifts and scales to mean 0 and standard deviation 1 over those of all ranks; on all ranks together."""
    count, total = world.sum(np.array([advantages.size, advantages.sum()]))
    centred = advantages - total / count
    variance = world.sum(np.array([(centred**2).sum()]))[0] / count
    return centred / (np.sqrt(variance) + 1e-8)
