"""Ranks train apart for many steps; what they learnt is then one step of an outer optimizer.

Douillard et al. 2023, "DiLoCo: Distributed Low-Communication Training of Language Models"
(arXiv:2311.08105): the way from where all set out to the mean of where they are is taken for a gradient,
of which SGD with Nesterov momentum makes the weights from which all set out again.
"""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import AllReduce, Held, Weights
from mpi_train.models.flat import FlatModel


class DiLoCo(Weights):
    """Args:
    all_reduce: Over the flat buffer.
    flat: The model; its weights may still change before the first step.
    every: Steps between two of the outer optimizer; it takes one at the end of an epoch too.
    rate, momentum: Of the outer optimizer. With 1 and 0 this is local SGD.
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
    def variables(self) -> Mapping[str, Held]:
        mine = {"origin": self._origin, "velocity": self._velocity, "begun": self._begun}
        return {**super().variables, **mine}

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        if not self._begun.numpy():
            # A copy: NumPy may see the variable's own memory, which the next update writes.
            self._origin.assign(np.array(self._flat.weights.numpy()))
            self._begun.assign(1.0)

    def average(self, weights: keras.Variable) -> tf.Operation:
        gradient = self._origin - self._all_reduce(weights.value.read_value())
        velocity = self._momentum * self._velocity + gradient
        step = self._rate * (gradient + self._momentum * velocity)
        arrived = self._origin - step
        return tf.group(
            self._velocity.assign(velocity, read_value=False),
            self._origin.assign(arrived, read_value=False),
            weights.value.assign(arrived, read_value=False),
        )
