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


class Loop:
    """Work in a graph loop, called with the number of iterations.

    ``body`` returns tensors like ``start``, and ``result`` those that leave the graph, from the last ones.
    ``body`` is called with 0 or 1, in turn, to use one of two inputs (a slice, not a copy). Otherwise a graph
    optimizer could move the computation out of the loop.
    """

    def __init__(
        self,
        body: Callable[[tf.Tensor], Sequence[tf.Tensor]],
        start: Sequence[tf.Tensor] = (),
        result: Callable[[list[tf.Tensor]], list[tf.Tensor]] = list,
    ) -> None:
        self.body, self._start, self._result = body, start, result

    def __call__(self, count: int) -> None:
        self.run(tf.constant(count))[-1].numpy()

    @tf.function(autograph=False)
    def run(self, count: tf.Tensor) -> list[tf.Tensor]:
        """Return the result of ``count`` iterations."""
        _, *last = tf.while_loop(
            lambda number, *_: number < count,
            lambda number, *_: (number + 1, *self.body(number % 2)),
            (0, *self._start),
            parallel_iterations=1,
        )
        return self._result(last)

    def flop(self) -> int:
        """Count the floating-point operations of one iteration."""
        graph = tf.function(lambda: self.body(0), autograph=False)
        return count_flop(graph.get_concrete_function().outputs)


def gradient(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> Loop:
    """Make forward pass, loss and backward pass of a plain Keras model, without the suite's training loop.

    Takes two batches of images, float32 (2, n, height, width, channels), with the same labels, int32 (n,).
    """
    from_logits = not returns_probabilities(model)
    both, answers = tf.constant(images), tf.constant(labels)
    variables = model.trainable_variables

    def body(number: tf.Tensor) -> list[tf.Tensor]:
        weights = [variable.value for variable in variables]
        with tf.GradientTape() as tape:
            outputs = model(both[number], training=True)
            loss = tf.reduce_mean(losses_of(outputs, answers, from_logits=from_logits))
        return tape.gradient(loss, weights, unconnected_gradients="zero")

    # All gradients leave the loop, at 0.5 µs each: TensorFlow would replace an unused one by a no-op.
    return Loop(body, [tf.zeros(variable.shape) for variable in variables])


def update(trainer: Trainer) -> Loop:
    """Make the update of all weights by the optimizer of ``trainer``, to and fro so that they stay small."""
    noise = np.random.default_rng(0).normal(0, 1e-3, trainer.flat.num_padded).astype(np.float32)
    with tf.device(trainer.devices[0]):
        gradients = tf.constant(np.stack([noise, -noise]))

    def body(number: tf.Tensor) -> list[tf.Tensor]:
        trainer.update.apply(gradients[number])
        return []

    return Loop(body, result=lambda _: [trainer.flat.weights.value[0]])


def product(dtype: str) -> Loop:
    """Make the product of two square matrices: the peak rate of the device for a ``dtype``."""
    values = np.random.default_rng(0).normal(size=(3, PRODUCT_SIZE, PRODUCT_SIZE))
    lefts, right = tf.cast(values[:2], dtype), tf.cast(values[2], dtype)
    return Loop(
        lambda number: [lefts[number] @ right], [tf.zeros_like(right)], result=lambda last: [last[0][0, 0]]
    )


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
            flop += 2 * _multiply_adds(op)
            waiting += [tensor.op for tensor in op.inputs]
    return flop


def _multiply_adds(op: tf.Operation) -> int:
    if op.type in ("MatMul", "BatchMatMul", "BatchMatMulV2"):
        is_transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
        return op.outputs[0].shape.num_elements() * op.inputs[0].shape[-2 if is_transposed else -1]
    # Convolved images (n, height, width, filters), of which each number takes one filter, and the kernel.
    tensors = [*op.inputs, *op.outputs]
    places = {"Conv2D": (2, 1), "Conv2DBackpropInput": (2, 1), "Conv2DBackpropFilter": (2, 3)}
    if op.type not in places:
        return 0
    images, kernel = (tensors[place].shape for place in places[op.type])
    return images.num_elements() * math.prod(kernel[:-1])
