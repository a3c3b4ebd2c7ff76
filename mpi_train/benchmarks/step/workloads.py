"""Parts of a training step, each in a graph loop of its own, and their floating-point operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from mpi_train.models.zoo import returns_probabilities
from mpi_train.training.losses import losses_of
from mpi_train.training.trainer import Trainer

PRODUCT_SIZE = 1024
"""Rows and columns of the matrices whose product shows the peak rate of a device."""
PRODUCT_FLOP = 2 * PRODUCT_SIZE**3

# Each iteration takes one of two inputs in turn (a slice, not a copy). Otherwise a graph optimizer could move
# the computation out of the loop.


class Gradient:
    """Forward pass, loss and backward pass of a plain Keras model, without the suite's training loop.

    Takes two batches of images, float32 (2, n, height, width, channels), with the same labels, int32 (n,).
    """

    def __init__(self, model: keras.Model, images: np.ndarray, labels: np.ndarray) -> None:
        self._model = model
        self._from_logits = not returns_probabilities(model)
        self._images, self._labels = tf.constant(images), tf.constant(labels)

    def __call__(self, count: int) -> None:
        self._loop(tf.constant(count))[-1].numpy()

    def flop(self) -> int:
        """Count the floating-point operations of one gradient."""
        graph = tf.function(lambda: self._gradients(self._images[0]), autograph=False)
        return count_flop(graph.get_concrete_function().outputs)

    @tf.function(autograph=False)
    def _loop(self, count: tf.Tensor) -> list[tf.Tensor]:
        def body(step: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return step + 1, *self._gradients(self._images[step % 2])

        # All gradients leave the loop, at 0.5 µs each: TensorFlow would replace an unused one by a no-op.
        start = [tf.zeros(variable.shape) for variable in self._model.trainable_variables]
        _, *last = tf.while_loop(lambda step, *_: step < count, body, (0, *start), parallel_iterations=1)
        return last

    def _gradients(self, images: tf.Tensor) -> list[tf.Tensor]:
        weights = [variable.value for variable in self._model.trainable_variables]
        with tf.GradientTape() as tape:
            outputs = self._model(images, training=True)
            loss = tf.reduce_mean(losses_of(outputs, self._labels, from_logits=self._from_logits))
        return tape.gradient(loss, weights, unconnected_gradients="zero")


class Update:
    """Update of all weights of ``trainer`` by its optimizer, to and fro so that weights stay small."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        noise = np.random.default_rng(0).normal(0, 1e-3, trainer.flat.num_padded).astype(np.float32)
        with tf.device(trainer.devices[0]):
            self._gradients = tf.constant(np.stack([noise, -noise]))

    def __call__(self, count: int) -> None:
        self._loop(tf.constant(count)).numpy()

    @tf.function(autograph=False)
    def _loop(self, count: tf.Tensor) -> tf.Tensor:
        def body(step: tf.Tensor) -> tuple[tf.Tensor]:
            self._trainer.update.apply(self._gradients[step % 2])
            return (step + 1,)

        tf.while_loop(lambda step: step < count, body, (0,), parallel_iterations=1)
        return self._trainer.flat.weights.value[0]


class Product:
    """Product of two square matrices of ``PRODUCT_SIZE``: the peak rate of the device for a ``dtype``."""

    def __init__(self, dtype: str) -> None:
        values = np.random.default_rng(0).normal(size=(3, PRODUCT_SIZE, PRODUCT_SIZE))
        self._lefts, self._right = tf.cast(values[:2], dtype), tf.cast(values[2], dtype)

    def __call__(self, count: int) -> None:
        self._loop(tf.constant(count)).numpy()

    @tf.function(autograph=False)
    def _loop(self, count: tf.Tensor) -> tf.Tensor:
        def body(step: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return step + 1, self._lefts[step % 2] @ self._right

        start = (0, tf.zeros_like(self._right))
        _, last = tf.while_loop(lambda step, _: step < count, body, start, parallel_iterations=1)
        return last[0, 0]


def count_flop(outputs: Sequence[tf.Tensor]) -> int:
    """Count the operations that compute ``outputs`` in their graph; a multiply-add counts as two.

    Matrix products and convolutions count, with padding. TensorFlow's profiler counts too much for gradients
    (``cnn``: 27%): it takes the gradient of an unpadded convolution to be as large as its input, and counts
    gradients of the images, which are not computed.
    """
    seen, waiting, flop = set(), [output.op for output in outputs], 0
    while waiting:
        op = waiting.pop()
        if op.name not in seen:
            seen.add(op.name)
            flop += 2 * _MULTIPLY_ADDS.get(op.type, lambda _: 0)(op)
            waiting += [tensor.op for tensor in op.inputs]
    return flop


def _product(op: tf.Operation) -> int:
    is_transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
    return op.outputs[0].shape.num_elements() * op.inputs[0].shape[-2 if is_transposed else -1]


def _convolution(images: tf.Tensor, kernel: tf.Tensor) -> int:
    """Count for convolved ``images`` (n, height, width, filters), of which each number takes one filter."""
    return images.shape.num_elements() * math.prod(kernel.shape[:-1])


_MULTIPLY_ADDS: dict[str, Callable[[tf.Operation], int]] = {
    "MatMul": _product,
    "BatchMatMul": _product,
    "BatchMatMulV2": _product,
    "Conv2D": lambda op: _convolution(op.outputs[0], op.inputs[1]),
    "Conv2DBackpropInput": lambda op: _convolution(op.inputs[2], op.inputs[1]),
    "Conv2DBackpropFilter": lambda op: _convolution(op.inputs[2], op.outputs[0]),
}
