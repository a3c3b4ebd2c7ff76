"""The policy and its value function: a Keras model to learn with, and the same in NumPy to act with."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from keras import layers

NUM_HIDDEN = 64


def build(num_inputs: int, num_actions: int, *, seed: int) -> keras.Model:
    """A model with two outputs, from separate layers: logits (n, num_actions), and value (n, 1).

    Its weights, which depend on ``seed`` alone, are those of the policy, then those of the value function.
    """
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy("float32")
    inputs = keras.Input((num_inputs,))
    # The first policy is nearly even: it tries everything.
    policy = _layers(num_actions, keras.initializers.VarianceScaling(1e-4), "policy")
    value = _layers(1, "glorot_uniform", "value")
    return keras.Model(inputs, [policy(inputs), value(inputs)], name="actor_critic")


def _layers(num_outputs: int, initializer: str | keras.Initializer, name: str) -> keras.Sequential:
    return keras.Sequential(
        [
            layers.Dense(NUM_HIDDEN, activation="tanh"),
            layers.Dense(num_outputs, kernel_initializer=initializer),
        ],
        name=name,
    )


class Actor:
    """The model with the weights of one moment, in NumPy: for a few observations at a time, a call into
    TensorFlow takes longer than the arithmetic.

    Args:
        weights: Of the model, in its order, as from ``FlatModel.unflatten``.
    """

    def __init__(self, weights: Sequence[np.ndarray]) -> None:
        half = len(weights) // 2
        self._policy, self._value = weights[:half], weights[half:]

    def greedy(self, observations: np.ndarray) -> np.ndarray:
        """The likeliest actions: int64 (n,), for float32 (n, num_inputs)."""
        return _forward(self._policy, observations).argmax(-1)

    def sample(self, observations: np.ndarray, chances: np.ndarray) -> np.ndarray:
        """Actions drawn by their probabilities: int64 (n,).

        Args:
            observations: float32 (n, num_inputs).
            chances: (n,), even in [0, 1): what each is drawn with.
        """
        logits = _forward(self._policy, observations)
        odds = np.exp(logits - logits.max(-1, keepdims=True)).cumsum(-1)
        return (odds[:, :-1] <= chances[:, None] * odds[:, -1:]).sum(-1)

    def log_probabilities(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Of these actions: float32 (...), for observations of (..., num_inputs)."""
        logits = _forward(self._policy, observations)
        logits -= logits.max(-1, keepdims=True)
        chosen = np.take_along_axis(logits, actions[..., None], -1)[..., 0]
        return chosen - np.log(np.exp(logits).sum(-1))

    def values(self, observations: np.ndarray) -> np.ndarray:
        """Of the states: float32 (...), for observations of (..., num_inputs)."""
        return _forward(self._value, observations)[..., 0]


def _forward(weights: Sequence[np.ndarray], inputs: np.ndarray) -> np.ndarray:
    kernel, bias, last_kernel, last_bias = weights
    return np.tanh(inputs @ kernel + bias) @ last_kernel + last_bias
