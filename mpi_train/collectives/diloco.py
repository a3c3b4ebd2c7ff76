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

from mpi_train.collectives.averaging import Context, Weights
from mpi_train.collectives.base import StateArray


class DiLoCo(Weights):
    """Outer steps of SGD with Nesterov momentum, every ``--every`` steps and at the end of an epoch.

    With a rate of 1 and a momentum of 0 this is local SGD. The model's weights may change before the first
    step.
    """

    def __init__(self, context: Context) -> None:
        config, self._flat = context.config, context.flat
        assert config.every is not None
        super().__init__(context.exact(context.flat.num_padded), every=config.every)
        self._rate, self._momentum = config.options.outer_rate, config.options.outer_momentum
        with tf.device(context.flat.weights.value.device):
            weights = context.flat.weights.value.read_value()
            self._origin = tf.Variable(weights, trainable=False)
            self._velocity = tf.Variable(tf.zeros_like(weights), trainable=False)
            self._begun = tf.Variable(0.0, trainable=False)

    @property
    def variables(self) -> Mapping[str, StateArray]:
        return {"origin": self._origin, "velocity": self._velocity, "begun": self._begun}

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
