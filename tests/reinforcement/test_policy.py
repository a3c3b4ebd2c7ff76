"""The policy in NumPy is the Keras model, and draws its actions by its probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from mpi_train.reinforcement import policy

OBSERVATIONS = np.random.default_rng(1).standard_normal((3000, 4)).astype(np.float32)


def make(num_actions: int) -> tuple[policy.Actor, np.ndarray, np.ndarray]:
    """An actor with weights that prefer some actions, and the outputs of its Keras model."""
    model = policy.build(4, num_actions, seed=1)
    rng = np.random.default_rng(2)
    weights = [rng.standard_normal(weight.shape).astype(np.float32) / 2 for weight in model.get_weights()]
    model.set_weights(weights)
    logits, values = model(tf.constant(OBSERVATIONS))
    return policy.Actor(weights), tf.nn.log_softmax(logits).numpy(), values.numpy()[:, 0]


@pytest.mark.parametrize("num_actions", [2, 5])
def test_numpy_and_keras_agree(num_actions: int) -> None:
    actor, log_probabilities, values = make(num_actions)
    assert actor.values(OBSERVATIONS) == pytest.approx(values, abs=1e-5)
    assert (actor.greedy(OBSERVATIONS) == log_probabilities.argmax(1)).mean() > 0.999
    for action in range(num_actions):
        found = actor.log_probabilities(OBSERVATIONS, np.full(len(OBSERVATIONS), action))
        assert found == pytest.approx(log_probabilities[:, action], abs=1e-5)


def test_observations_may_have_several_axes() -> None:
    actor, log_probabilities, values = make(2)
    stacked = OBSERVATIONS.reshape(30, 100, 4)
    assert actor.values(stacked) == pytest.approx(values.reshape(30, 100), abs=1e-5)
    found = actor.log_probabilities(stacked, np.ones((30, 100), np.int32))
    assert found == pytest.approx(log_probabilities[:, 1].reshape(30, 100), abs=1e-5)


@pytest.mark.parametrize("num_actions", [2, 5])
def test_actions_are_drawn_by_their_probabilities(num_actions: int) -> None:
    actor, log_probabilities, _ = make(num_actions)
    expected = np.exp(log_probabilities[0])
    chances = (np.arange(3000) + 0.5) / 3000
    actions = actor.sample(np.repeat(OBSERVATIONS[:1], 3000, axis=0), chances)
    assert np.bincount(actions, minlength=num_actions) / 3000 == pytest.approx(expected, abs=1e-3)


def test_the_first_policy_is_nearly_even() -> None:
    actor = policy.Actor(policy.build(4, 2, seed=1).get_weights())
    ones = np.ones(len(OBSERVATIONS), np.int32)
    assert np.exp(actor.log_probabilities(OBSERVATIONS, ones)) == pytest.approx(0.5, abs=0.02)
