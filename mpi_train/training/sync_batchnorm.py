"""Synchronised BatchNorm: moments over the global batch instead of each rank's part of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from mpi_train.collectives.base import AllReduce
from mpi_train.models import zoo
from mpi_train.runtime.errors import UsageError


class SyncBatchNormalization(layers.BatchNormalization):
    """Keras's BatchNormalization with moments over all ranks.

    A rank without an example in a step counts one that it has.

    Args:
        mean_over_ranks: Function that makes an all-reduce for vectors of a length, in float32 numbers; None
            for a single rank.
    """

    def __init__(self, *, mean_over_ranks: Callable[[int], AllReduce] | None = None, **config: Any) -> None:
        super().__init__(**config)
        self._mean_over_ranks = mean_over_ranks

    def build(self, input_shape: tuple[int, ...]) -> None:
        super().build(input_shape)
        self._channels = input_shape[self.axis]
        if self._mean_over_ranks is not None:
            length = 2 * self._channels + 1
            self._forward, self._backward = self._mean_over_ranks(length), self._mean_over_ranks(length)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if self._mean_over_ranks is None or not training or not self.trainable:
            return super().call(inputs, training=training, mask=mask)
        values = tf.cast(inputs, tf.float32)
        axes = [axis for axis in range(values.shape.rank) if axis != self.axis % values.shape.rank]
        count = tf.cast(tf.size(values) // self._channels, tf.float32)
        sums = [tf.reduce_sum(values, axes), tf.reduce_sum(values * values, axes), count[tf.newaxis]]
        total, squares, count = tf.split(self._mean(tf.concat(sums, 0)), [self._channels, self._channels, 1])
        mean = total / count
        variance = squares / count - mean * mean
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + tf.cast(new, moving.dtype) * (1 - self.momentum))
        outputs = keras.ops.batch_normalization(
            values, mean, variance, self.axis, offset=self.beta, scale=self.gamma, epsilon=self.epsilon
        )
        return tf.cast(outputs, self.compute_dtype)

    def _mean(self, vector: tf.Tensor) -> tf.Tensor:
        # A rank's values affect the loss of every rank, so the gradient is averaged over the ranks too.
        return tf.custom_gradient(lambda x: (tf.identity(self._forward(x)), self._backward))(vector)


def synchronised(model: keras.Model, mean_over_ranks: Callable[[int], AllReduce] | None) -> keras.Model:
    """Copy ``model`` with ``SyncBatchNormalization`` in place of its BatchNorm; see that and ``zoo.clone``.

    Raises:
        UsageError: the model has no BatchNorm, or layers that Keras cannot make from their config.
    """
    made = []

    def synchronise(layer: keras.Layer) -> keras.Layer:
        if type(layer) is not layers.BatchNormalization:
            return layer.__class__.from_config(layer.get_config())
        made.append(SyncBatchNormalization(mean_over_ranks=mean_over_ranks, **layer.get_config()))
        return made[-1]

    copy = zoo.clone(model, synchronise)
    if not made:
        raise UsageError(
            f"--sync-batchnorm: expected a model with BatchNorm. Got: {model.name}",
            remedy="leave it out, or --model resnet",
        )
    return copy
