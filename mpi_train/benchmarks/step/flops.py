"""Counts the floating-point operations of the products and convolutions in a graph.

TensorFlow has a profiler for this, but what it says of gradients is too much, for ``cnn`` by 27%: it takes
the gradient of an unpadded convolution to be as large as its input, and counts gradients with respect
to the images, which no one asked for and which are never computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tensorflow as tf


def count_flop(outputs: Sequence[tf.Tensor]) -> int:
    """Operations that it takes to compute ``outputs`` in their graph, a multiply-add being two.

    Counted are matrix products and convolutions, as is the custom for neural networks; padding counts
    as data. All shapes must be known.
    """
    seen: set[str] = set()
    waiting = [output.op for output in outputs]
    flop = 0
    while waiting:
        op = waiting.pop()
        if op.name not in seen:
            seen.add(op.name)
            flop += 2 * _MULTIPLY_ADDS.get(op.type, lambda _: 0)(op)
            waiting += [tensor.op for tensor in op.inputs]
    return flop


def _product(op: tf.Operation) -> int:
    is_transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
    inner = op.inputs[0].shape[-2 if is_transposed else -1]
    return op.outputs[0].shape.num_elements() * inner


def _convolution(images: tf.Tensor, kernel: tf.Tensor) -> int:
    """Of convolved ``images`` (n, height, width, filters): each number of theirs takes one filter."""
    return images.shape.num_elements() * math.prod(kernel.shape[:-1])


_MULTIPLY_ADDS: dict[str, Callable[[tf.Operation], int]] = {
    "MatMul": _product,
    "BatchMatMul": _product,
    "BatchMatMulV2": _product,
    "Conv2D": lambda op: _convolution(op.outputs[0], op.inputs[1]),
    "Conv2DBackpropInput": lambda op: _convolution(op.inputs[2], op.inputs[1]),
    "Conv2DBackpropFilter": lambda op: _convolution(op.inputs[2], op.outputs[0]),
}
