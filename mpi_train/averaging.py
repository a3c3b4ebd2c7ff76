"""What the ranks average, and when: the one place where MPI data parallelism differs from one process.

With plain or momentum SGD, averaging the gradients before the update and averaging the weights after
it are the same arithmetic, because the update is linear in the gradient. Adam divides by a running
root mean square, which every rank takes of its own gradients under ``Weights``: the two then differ.
"""

from __future__ import annotations

from typing import Protocol

import keras
import tensorflow as tf


class AllReduce(Protocol):
    """Replaces a vector by its mean over the ranks; ``seconds`` counts the time it took."""

    seconds: float

    def __call__(self, vector: tf.Tensor) -> tf.Tensor: ...


class Nothing:
    """For a process on its own.

    Attributes:
        seconds: Time in all-reduces so far, waiting for other ranks included.
    """

    seconds = 0.0

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


class _Averaging(Nothing):
    def __init__(self, all_reduce: AllReduce) -> None:
        self._all_reduce = all_reduce

    @property
    def seconds(self) -> float:  # type: ignore[override]
        return self._all_reduce.seconds


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
