"""PowerSGD: exchange a low-rank approximation of each layer's gradient matrix.

Vogels, Karimireddy & Jaggi 2019, "PowerSGD" (arXiv:1905.13727). A matrix M (n, m) is approximated by Q P^T
with Q (n, r) and P (m, r). One step of the power method, P = M^T Q and then Q = M P, starts from the Q of the
previous step. Both products are linear in M, so the products of the mean matrix are the means of the ranks'
products. The error of the approximation of a rank's own M is added to its next gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import Averaging, Context, Gradients
from mpi_train.collectives.base import AllReduce
from mpi_train.runtime.errors import UsageError


@dataclass(frozen=True)
class _Matrix:
    """Kernel whose gradient is approximated, as a matrix of (all axes but the last, the last axis).

    Attributes:
        index: Index of the weight in the model.
        q: float32 (n, r), the same on all ranks.
        error: float32 (n, m), sum of the errors of this rank's gradients so far.
    """

    index: int
    q: tf.Variable
    error: tf.Variable


class PowerSGD(AllReduce):
    """Two small all-reduces in place of one of the whole gradient.

    Biases, and kernels whose bytes would not even halve, are part of the first all-reduce unchanged.

    Raises:
        UsageError: no kernel's bytes would halve.
    """

    def __init__(self, context: Context) -> None:
        self._flat = flat = context.flat
        rank = context.config.options.powersgd_rank
        draw = np.random.default_rng(context.seed).standard_normal
        self._matrices: list[_Matrix] = []
        with tf.device(flat.weights.value.device):
            for index, shape in enumerate(flat.shapes):
                n, m = math.prod(shape[:-1]), (shape or (1,))[-1]
                if 2 * rank * (n + m) <= n * m:
                    q = tf.Variable(draw((n, rank), np.float32), trainable=False)
                    self._matrices.append(_Matrix(index, q, tf.Variable(tf.zeros((n, m)), trainable=False)))
        if not self._matrices:
            raise UsageError(
                f"--powersgd-rank: expected a rank so small that it halves the bytes of some layer. "
                f"Got: {rank}",
                remedy="a smaller one, or --average gradients alone",
            )
        indices = {matrix.index for matrix in self._matrices}
        self._whole = [index for index in range(len(flat.shapes)) if index not in indices]
        ps = [(matrix.error.shape[1], rank) for matrix in self._matrices]
        self._first = _Joint(context, [*ps, *(flat.shapes[index] for index in self._whole)])
        self._second = _Joint(context, [tuple(matrix.q.shape) for matrix in self._matrices])
        self.logs = [*self._first.all_reduce.logs, *self._second.all_reduce.logs]
        self.variables = {
            name: variable
            for matrix in self._matrices
            for name, variable in ((f"q/{matrix.index}", matrix.q), (f"error/{matrix.index}", matrix.error))
        }

    def __call__(self, vector: tf.Tensor) -> tf.Tensor:
        means = self._flat.slices(vector)
        ms = [tf.reshape(means[each.index], each.error.shape) + each.error for each in self._matrices]
        ps = [tf.matmul(m, each.q, transpose_a=True) for m, each in zip(ms, self._matrices, strict=True)]
        firsts = self._first([*ps, *(means[index] for index in self._whole)])
        # Householder's QR makes a basis of a gradient of zeros or of a lower rank too, without NaN.
        with tf.device("/CPU:0"):  # where an all-reduce leaves them
            ps = [tf.linalg.qr(p).q for p in firsts[: len(ms)]]
        qs = self._second([tf.matmul(m, p) for m, p in zip(ms, ps, strict=True)])
        for matrix, m, p, q in zip(self._matrices, ms, ps, qs, strict=True):
            means[matrix.index] = approximation = tf.matmul(q, p, transpose_b=True)
            matrix.error.assign(m - approximation, read_value=False)
            # A Q of zeros would stay zero in all later steps.
            matrix.q.assign(tf.where(q == 0, matrix.q, q), read_value=False)
        for index, mean in zip(self._whole, firsts[len(ms) :], strict=True):
            means[index] = mean
        return self._flat.concat(means)


class _Joint:
    """Means of tensors of these shapes over the ranks, in one all-reduce."""

    def __init__(self, context: Context, shapes: Sequence[tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._sizes = [math.prod(shape) for shape in shapes]
        self.all_reduce = context.exact(sum(self._sizes))

    def __call__(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        mean = self.all_reduce(tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0))
        means = tf.split(mean, self._sizes)
        return [tf.reshape(each, shape) for each, shape in zip(means, self._shapes, strict=True)]


def make(context: Context) -> Averaging:
    """Make the policy of ``--collective powersgd``."""
    return Gradients(PowerSGD(context))
