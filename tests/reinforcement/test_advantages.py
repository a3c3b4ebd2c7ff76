"""How much better an action was than expected, against sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mpi_train.data.shards import balanced_range
from mpi_train.reinforcement.advantages import estimate, standardise
from mpi_train.runtime.world import World

DISCOUNT, DECAY = 0.9, 0.7


def by_hand(steps: list[tuple[float, float, float, bool, bool]], first: int) -> float:
    """The sum of equation 16 from step ``first`` to the end of its episode, a term after another."""
    total, weight = 0.0, 1.0
    for reward, value, next_value, terminated, ended in steps[first:]:
        total += weight * (reward + (0 if terminated else DISCOUNT * next_value) - value)
        weight *= DISCOUNT * DECAY
        if ended:
            break
    return total


def test_is_the_weighted_sum_of_the_surprises_to_the_end_of_the_episode() -> None:
    rng = np.random.default_rng(1)
    rewards, values, next_values = rng.standard_normal((3, 50, 4))
    terminated = rng.random((50, 4)) < 0.1
    ended = terminated | (rng.random((50, 4)) < 0.1)
    assert (ended & ~terminated).any()
    found = estimate(rewards, values, next_values, terminated, ended, discount=DISCOUNT, decay=DECAY)
    for env in range(4):
        columns = (array[:, env].tolist() for array in (rewards, values, next_values, terminated, ended))
        steps = list(zip(*columns, strict=True))
        assert found[:, env] == pytest.approx([by_hand(steps, first) for first in range(50)])


def test_an_episode_that_was_cut_off_keeps_the_value_of_its_last_state() -> None:
    one = np.ones((1, 1))
    yes, no = np.array([[True]]), np.array([[False]])
    cut = estimate(one, one, 10 * one, no, yes, discount=0.5, decay=1)
    ended = estimate(one, one, 10 * one, yes, yes, discount=0.5, decay=1)
    assert (cut.item(), ended.item()) == (5, 0)


def test_standardised_over_all_ranks(world: World) -> None:
    everyone = np.random.default_rng(1).normal(3, 5, (7, 9))
    mine = slice(*balanced_range(9, world.size, world.rank))
    expected = (everyone - everyone.mean()) / everyone.std()
    assert standardise(everyone[:, mine], world) == pytest.approx(expected[:, mine])
