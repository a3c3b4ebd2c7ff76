"""Proximal policy optimisation: some passes over what was seen, that may not change the policy too much.

Schulman et al. 2017, arXiv:1707.06347, with the clipped objective of equation 7. All passes of an update are
one compiled graph; within it the only visit to the host is the all-reduce of each minibatch's gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import Nothing
from mpi_train.models.flat import FlatModel
from mpi_train.models.optimizers import update_for
from mpi_train.runs.config import NUM_MINIBATCHES

NUM_PASSES = 6
"""Over each batch."""
CLIP = 0.2
"""How far the probability of an action may move from what it was, as a part of that."""


@dataclass(frozen=True)
class Lesson:
    """What one rank learns from in an update; arrays are (num_steps, num_envs, ...).

    Attributes:
        observations: float32.
        actions: int32, what was done there.
        log_probabilities: float32, of that under the policy that did it.
        advantages: float32, how much better it was than expected.
        returns: float32, what the value of the state should have been.
    """

    observations: np.ndarray
    actions: np.ndarray
    log_probabilities: np.ndarray
    advantages: np.ndarray
    returns: np.ndarray


class Learner:
    """Args:
        flat: The model, on ``device``.
        optimizer: A fresh Keras optimizer.
        averaging: What is averaged over the ranks: gradients, or nothing where there is one.
        device: Where the graph runs.
        scale: What the sum of a rank's losses in a minibatch is multiplied by, such that the mean over the
            ranks is the mean over the minibatch.

    Attributes:
        update: The optimizer, bound to the flat buffer.
    """

    def __init__(
        self, flat: FlatModel, optimizer: keras.Optimizer, *, averaging: Nothing, device: str, scale: float
    ) -> None:
        self.flat, self._averaging, self._device, self._scale = flat, averaging, device, scale
        self.update = update_for(optimizer, flat, device)
        averaging.attach(self.update)

    @property
    def variables(self) -> list[tf.Variable]:
        """All that a rank must have in common with the others when training starts."""
        return [self.flat.weights.value, *self.update.variables]

    def warm_up(self, lesson: Lesson, order: np.ndarray) -> None:
        """Runs the graph once and undoes it, so that no update's time holds its making.

        On all ranks together; arguments as for ``improve``.
        """
        before = [np.array(variable.numpy()) for variable in self.variables]
        self.improve(lesson, order)
        for variable, value in zip(self.variables, before, strict=True):
            variable.assign(value)

    def improve(self, lesson: Lesson, order: np.ndarray) -> None:
        """Goes through a lesson; on all ranks together.

        Args:
            lesson: What was seen.
            order: int32 (NUM_PASSES, num_steps, num_envs): for each pass and environment, its steps in the
                order in which they are taken, a part of them in each minibatch.
        """
        num_envs = order.shape[2]
        places = (order * num_envs + np.arange(num_envs, dtype=np.int32)).reshape(
            NUM_PASSES * NUM_MINIBATCHES, -1
        )
        # In the order of Lesson's fields; each as (n, ...).
        arrays = [
            lesson.observations.reshape(-1, lesson.observations.shape[-1]),
            lesson.actions.ravel(),
            lesson.log_probabilities.ravel(),
            lesson.advantages.ravel(),
            lesson.returns.ravel(),
        ]
        with tf.device(self._device):
            self._run([tf.constant(array) for array in arrays], tf.constant(places))

    @tf.function(autograph=False)
    def _run(self, arrays: list[tf.Tensor], places: tf.Tensor) -> None:
        """The arrays of a lesson, and int32 (minibatches, length): where in them each minibatch is."""

        def body(number: tf.Tensor) -> tuple[tf.Tensor]:
            gradient = self._gradient([tf.gather(array, places[number]) for array in arrays])
            self.update.apply(self._averaging.gradient(gradient))
            return (number + 1,)

        tf.while_loop(lambda number: number < places.shape[0], body, (0,), parallel_iterations=1)

    def _gradient(self, arrays: list[tf.Tensor]) -> tf.Tensor:
        """Of one minibatch of these arrays: float32 (num_padded,)."""
        observations, actions, log_probabilities, advantages, returns = arrays
        pieces = self.flat.slices(tf.identity(self.flat.weights.value))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(pieces)
            (logits, values), _ = self.flat.call(pieces, [], observations, training=True)
            now = -tf.nn.sparse_softmax_cross_entropy_with_logits(actions, logits)
            ratios = tf.exp(now - log_probabilities)
            gains = tf.minimum(ratios * advantages, tf.clip_by_value(ratios, 1 - CLIP, 1 + CLIP) * advantages)
            # Policy and value function share no weights, and Adam does not mind the scale of a gradient: so
            # the two losses need no weights either.
            losses = tf.square(values[:, 0] - returns) - gains
            loss = self._scale * tf.reduce_sum(losses)
        return self.flat.concat(tape.gradient(loss, pieces))
