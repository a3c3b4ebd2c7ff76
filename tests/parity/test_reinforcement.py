"""Environments dealt out to N ranks teach what they teach one process."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from mpi_train.reinforcement.site import Site
from mpi_train.runs.config import ReinforcementConfig
from mpi_train.runs.coordinator import Control
from mpi_train.runtime.world import World
from mpi_train.training.replicas import check_equal

TOLERANCE = 1e-4
"""Adam makes steps of one size of gradients of any: rounding shows more than in the gradients themselves."""


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("num_envs", [8, 5])
def test_ranks_learn_what_one_process_learns(world: World, num_envs: int) -> None:
    """With 5 environments the ranks' parts differ in size."""
    config = ReinforcementConfig(num_envs=num_envs, batch_size=num_envs * 16, updates=10)
    sites = [Site(config, ranks, "/CPU:0") for ranks in (world, world, World())]
    together, again, alone = (list(islice(site.updates(Control(site.world)), 3)) for site in sites)
    mine, repeated, expected = (site.flat.weights.numpy() for site in sites)
    assert np.array_equal(mine, repeated)
    assert np.abs(mine - expected).max() < TOLERANCE
    check_equal(world, [mine], when="after 3 updates")
    for one, other, third in zip(together, again, alone, strict=True):
        assert one.num_episodes == other.num_episodes == third.num_episodes
        assert one.mean_reward == other.mean_reward == third.mean_reward
    assert sum(update.num_episodes for update in together) > 0
    assert sites[0].evaluate() == sites[2].evaluate()
