"""What an update does to the policy."""

from __future__ import annotations

import numpy as np
import pytest

from mpi_train.collectives.averaging import Nothing
from mpi_train.models import optimizers
from mpi_train.models.flat import FlatModel
from mpi_train.reinforcement import policy
from mpi_train.reinforcement.learner import CLIP, NUM_PASSES, Learner, Lesson

NUM_STEPS, NUM_ENVS = 16, 8
SHAPE = (NUM_STEPS, NUM_ENVS)


@pytest.fixture
def learner() -> Learner:
    flat = FlatModel(policy.build(4, 2, seed=1))
    optimizer = optimizers.build("adam", 0.01)
    return Learner(flat, optimizer, averaging=Nothing(), device="/CPU:0", scale=4 / (NUM_STEPS * NUM_ENVS))


def actor_of(learner: Learner) -> policy.Actor:
    return policy.Actor(learner.flat.unflatten(learner.flat.weights.numpy()))


def lesson_of(learner: Learner, advantage: float, *, ratio: float = 1.0) -> Lesson:
    """Observations all alike, in which action 1 was taken and had this advantage.

    It is ``ratio`` times as likely now as when it was taken.
    """
    observations = np.full((*SHAPE, 4), 0.5, np.float32)
    actions = np.ones(SHAPE, np.int32)
    now = actor_of(learner).log_probabilities(observations, actions)
    return Lesson(
        observations=observations,
        actions=actions,
        log_probabilities=now - np.float32(np.log(ratio)),
        advantages=np.full(SHAPE, advantage, np.float32),
        returns=np.full(SHAPE, 2.0, np.float32),
    )


def change(learner: Learner, lesson: Lesson) -> float:
    """How many times as likely the action of the lesson is after it."""
    before = actor_of(learner).log_probabilities(lesson.observations, lesson.actions)
    learner.improve(lesson, order())
    after = actor_of(learner).log_probabilities(lesson.observations, lesson.actions)
    return float(np.exp(after - before).mean())


def order() -> np.ndarray:
    steps = np.arange(NUM_STEPS, dtype=np.int32)[:, np.newaxis]
    return np.random.default_rng(1).permuted(
        np.broadcast_to(steps, (NUM_PASSES, NUM_STEPS, NUM_ENVS)), axis=1
    )


def test_a_good_action_becomes_likelier_and_a_bad_one_less(learner: Learner) -> None:
    assert change(learner, lesson_of(learner, 1.0)) > 1.1
    assert change(learner, lesson_of(learner, -1.0)) < 0.9


@pytest.mark.parametrize(("advantage", "ratio"), [(1.0, 1 + 2 * CLIP), (-1.0, 1 - 2 * CLIP), (0.0, 1.0)])
def test_a_policy_that_has_gone_far_enough_stays(learner: Learner, advantage: float, ratio: float) -> None:
    assert change(learner, lesson_of(learner, advantage, ratio=ratio)) == 1


@pytest.mark.parametrize(("advantage", "ratio"), [(-1.0, 1 + 2 * CLIP), (1.0, 1 - 2 * CLIP)])
def test_a_policy_that_has_gone_astray_comes_back(learner: Learner, advantage: float, ratio: float) -> None:
    assert (change(learner, lesson_of(learner, advantage, ratio=ratio)) - 1) * advantage > 0.1


def test_the_value_comes_nearer_to_the_returns(learner: Learner) -> None:
    lesson = lesson_of(learner, 0.0)
    before = actor_of(learner).values(lesson.observations)
    learner.improve(lesson, order())
    after = actor_of(learner).values(lesson.observations)
    assert np.abs(after - 2).max() < np.abs(before - 2).min() / 2


def test_warming_up_leaves_no_trace(learner: Learner) -> None:
    before = [np.array(variable.numpy()) for variable in learner.variables]
    learner.warm_up(lesson_of(learner, 1.0), order())
    for variable, value in zip(learner.variables, before, strict=True):
        assert np.array_equal(variable.numpy(), value)
