"""What the ranks average, and when: the one place where MPI data parallelism differs from one process.

With plain or momentum SGD, averaging the gradients before the update and averaging the weights after
it are the same arithmetic, because the update is linear in the gradient. Adam divides by a running
root mean square, which every rank takes of its own gradients under ``Weights``: the two then differ.
"""

from __future__ import annotations

from typing import Protocol

import keras
import numpy as np
import tensorflow as tf


class AllReduce(Protocol):
    """Replaces a vector by its mean over the ranks, and counts the time it takes."""

    def __call__(self, vector: tf.Tensor) -> tf.Tensor: ...

    def take_durations(self) -> np.ndarray: ...


class Nothing:
    """For a process on its own."""

    def gradient(self, gradient: tf.Tensor) -> tf.Tensor:
        """Called with the local gradient; what it returns is applied."""
        return gradient

    def weights(self, weights: keras.Variable, step: tf.Tensor, is_last: tf.Tensor) -> None:
        """Called after the update.

        Args:
            weights: The flat buffer.
            step: int32, steps of this epoch before this one.
            is_last: bool, whether the epoch ends here; ranks must then be equal.
        """

    def take_durations(self) -> np.ndarray:
        """Seconds of each all-reduce since this was last called, waiting for other ranks included."""
        return np.zeros(0)


class _Averaging(Nothing):
    def __init__(self, all_reduce: AllReduce) -> None:
        self._all_reduce = all_reduce

    def take_durations(self) -> np.ndarray:
        return self._all_reduce.take_durations()


class Gradients(_Averaging):
    """Averages the gradients before each update: the ranks' weights and optimizer slots stay equal."""

    def gradient(self, gradient: tf.Tensor) -> tf.Tensor:
        return self._all_reduce(gradient)


class Weights(_Averaging):
    """Averages the weights after every ``every`` updates, and at the end of an epoch.

    Optimizer slots stay each rank's own. ``every`` above 1 is local SGD (Stich 2019).
    """

    def __init__(self, all_reduce: AllReduce, every: int = 1) -> None:
        super().__init__(all_reduce)
        self._every = every

    def weights(self, weights: keras.Variable, step: tf.Tensor, is_last: tf.Tensor) -> None:
        def average() -> tf.Operation:
            return weights.value.assign(self._all_reduce(weights.value.read_value()), read_value=False)

        if self._every == 1:
            average()
        else:
            due = tf.logical_or((step + 1) % self._every == 0, is_last)
            tf.cond(due, average, tf.no_op)
