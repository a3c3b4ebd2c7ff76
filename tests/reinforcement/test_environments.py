"""What is played depends on the environment's number, not on which others a rank has."""

from __future__ import annotations

import numpy as np
import pytest

from mpi_train.reinforcement.environments import MAX_STEPS, Environments, first_returns


def push_right(observations: np.ndarray, _step: int) -> np.ndarray:
    return np.ones(len(observations), np.int64)


def lean(observations: np.ndarray, _step: int) -> np.ndarray:
    """Towards where the pole leans, which keeps it up for some 40 steps."""
    return (observations[:, 2] > 0).astype(np.int64)


def balance(observations: np.ndarray, _step: int) -> np.ndarray:
    """Towards where the pole leans and falls, which keeps it up."""
    return (observations[:, 2] + observations[:, 3] > 0).astype(np.int64)


def test_a_part_of_the_environments_plays_as_it_does_among_all() -> None:
    among_all = Environments(range(6), seed=3).play(lean, 300)
    alone = Environments(range(2, 5), seed=3).play(lean, 300)
    for name in ("observations", "next_observations", "actions", "rewards", "terminated", "ended"):
        assert np.array_equal(getattr(among_all, name)[:, 2:5], getattr(alone, name)), name
    assert among_all.ended.any()


def test_environments_seeds_and_evaluation_differ() -> None:
    firsts = [
        Environments(range(3), seed, evaluation=evaluation).play(push_right, 1).observations[0, env].tobytes()
        for seed in (1, 2)
        for evaluation in (False, True)
        for env in range(3)
    ]
    assert len(set(firsts)) == 12


def test_the_state_in_which_an_episode_ended_is_kept() -> None:
    seen = Environments(range(2), seed=1).play(push_right, 30)
    assert seen.ended.any()
    assert np.array_equal(seen.ended, seen.terminated)
    # A pole that fell leans; the next episode begins upright.
    assert (np.abs(seen.next_observations[seen.ended, 2]) > 0.2).all()
    begins = seen.observations[1:][seen.ended[:-1]]
    assert (np.abs(begins) <= 0.05).all()
    goes_on = ~seen.ended[:-1]
    assert np.array_equal(seen.observations[1:][goes_on], seen.next_observations[:-1][goes_on])


def test_returns_add_up_over_what_is_played_in_pieces() -> None:
    whole = Environments(range(3), seed=1).play(push_right, 60)
    environments = Environments(range(3), seed=1)
    pieces = [environments.play(push_right, 5) for _ in range(12)]
    assert [one for piece in pieces for one in piece.returns] == whole.returns
    assert len(whole.returns) == whole.ended.sum() > 6
    assert first_returns(whole) == [float(whole.ended[:, env].argmax() + 1) for env in range(3)]


def test_an_episode_is_cut_off_at_its_limit() -> None:
    """Which the evaluation relies on: after that many steps each environment has ended an episode."""
    seen = Environments(range(2), seed=1).play(balance, MAX_STEPS)
    assert first_returns(seen) == [MAX_STEPS, MAX_STEPS]
    assert seen.ended[-1].all()
    assert not seen.terminated.any()


@pytest.mark.parametrize("steps", [1, 7])
def test_shapes(steps: int) -> None:
    environments = Environments(range(4), seed=1)
    assert (environments.num_inputs, environments.num_actions) == (4, 2)
    seen = environments.play(push_right, steps)
    assert seen.observations.shape == seen.next_observations.shape == (steps, 4, 4)
    assert seen.actions.shape == seen.rewards.shape == seen.ended.shape == (steps, 4)
    assert seen.observations.dtype == np.float32
