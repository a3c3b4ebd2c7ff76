"""DiLoCo: ranks train independently for many steps, then take one step of an outer optimizer together.

Douillard et al. 2023, "DiLoCo: Distributed Low-Communication Training of Language Models"
(arXiv:2311.08105): the difference between the weights at which all ranks started and the mean of their
weights now serves as a gradient. SGD with Nesterov momentum turns it into the next common start.
"""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import Averaging, Context, Weights
from mpi_train.collectives.base import AllReduce, StateArray
from mpi_train.models.flat import FlatModel


class DiLoCo(Weights):
    """Outer steps of SGD with Nesterov momentum, every ``every`` steps and at the end of an epoch.

    Args:
        all_reduce: All-reduce over the flat buffer.
        flat: The model; its weights may still change before the first step.
        every: Steps between two outer steps.
        rate: Learning rate of the outer optimizer.
        momentum: Momentum of the outer optimizer. With rate 1 and momentum 0 this is local SGD.
    """

    def __init__(
        self, all_reduce: AllReduce, flat: FlatModel, every: int, rate: float, momentum: float
    ) -> None:
        super().__init__(all_reduce, every)
        self._flat, self._rate, self._momentum = flat, rate, momentum
        with tf.device(flat.weights.value.device):
            weights = flat.weights.value.read_value()
            self._origin = tf.Variable(weights, trainable=False)
            self._velocity = tf.Variable(tf.zeros_like(weights), trainable=False)
            self._begun = tf.Variable(0.0, trainable=False)

    @property
    def variables(self) -> Mapping[str, StateArray]:
        own = {"origin": self._origin, "velocity": self._velocity, "begun": self._begun}
        return {**super().variables, **own}

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        if not self._begun.numpy():
            # A copy: numpy() may return the variable's own memory, which the next update writes.
            self._origin.assign(np.array(self._flat.weights.numpy()))
            self._begun.assign(1.0)

    def average(self, weights: keras.Variable) -> tf.Operation:
        gradient = self._origin - self.all_reduces[0](weights.value.read_value())
        velocity = self._momentum * self._velocity + gradient
        step = self._rate * (gradient + self._momentum * velocity)
        new = self._origin - step
        return tf.group(
            self._velocity.assign(velocity, read_value=False),
            self._origin.assign(new, read_value=False),
            weights.value.assign(new, read_value=False),
        )


def make(context: Context) -> Averaging:
    """Make the policy of ``--collective diloco``."""
    options, every = context.config.options, context.config.every
    assert every is not None
    return DiLoCo(
        context.exact(context.length), context.flat, every, options.outer_rate, options.outer_momentum
    )
