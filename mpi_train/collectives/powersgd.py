"""PowerSGD: exchange a low-rank approximation of each layer's gradient matrix.

Vogels, Karimireddy & Jaggi 2019, "PowerSGD" (arXiv:1905.13727). A matrix M (n, m) is approximated by Q P^T
with Q (n, r) and P (m, r). One step of the power method, P = M^T Q and then Q = M P, starts from the Q of the
previous step. Both products are linear in M, so the products of the mean matrix are the means of the ranks'
products. The error of the approximation of a rank's own M is added to its next gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import Averaging, Context
from mpi_train.collectives.base import StateArray
from mpi_train.runtime.errors import UsageError


class PowerSGD(Averaging):
    """Two small all-reduces in place of one of the whole gradient.

    A kernel is a matrix of (all axes but the last, the last axis). Biases, and kernels whose bytes would not
    even halve, are part of the first all-reduce unchanged.

    Raises:
        UsageError: no kernel's bytes would halve.
    """

    def __init__(self, context: Context) -> None:
        self._flat = flat = context.flat
        rank = context.config.options.powersgd_rank
        draw = np.random.default_rng(context.seed).standard_normal
        # By index of the kernel in the model: Q, the same on all ranks, and the sum of this rank's errors.
        self._qs: dict[int, tf.Variable] = {}
        self._errors: dict[int, tf.Variable] = {}
        with tf.device(flat.weights.value.device):
            for index, shape in enumerate(flat.shapes):
                n, m = math.prod(shape[:-1]), (shape or (1,))[-1]
                if 2 * rank * (n + m) <= n * m:
                    self._qs[index] = tf.Variable(draw((n, rank), np.float32), trainable=False)
                    self._errors[index] = tf.Variable(tf.zeros((n, m)), trainable=False)
        if not self._qs:
            raise UsageError(
                f"--powersgd-rank: expected a rank that halves the bytes of some layer. Got: {rank}",
                remedy="a smaller one, or --average gradients alone",
            )
        self._whole = [index for index in range(len(flat.shapes)) if index not in self._qs]
        widths = sum(error.shape[1] for error in self._errors.values())
        self._first = context.exact(rank * widths + sum(flat.sizes[index] for index in self._whole))
        self._second = context.exact(rank * sum(q.shape[0] for q in self._qs.values()))
        self.all_reduces = [self._first, self._second]

    @property
    def variables(self) -> Mapping[str, StateArray]:
        return {
            **{f"q/{index}": q for index, q in self._qs.items()},
            **{f"error/{index}": error for index, error in self._errors.items()},
        }

    def gradient(self, gradient: tf.Tensor) -> tf.Tensor:
        means = self._flat.slices(gradient)
        ms = {index: tf.reshape(means[index], error.shape) + error for index, error in self._errors.items()}
        ps = [tf.matmul(m, self._qs[index], transpose_a=True) for index, m in ms.items()]
        firsts = self._first.jointly([*ps, *(means[index] for index in self._whole)])
        # Householder's QR makes a basis of a gradient of zeros or of a lower rank too, without NaN.
        with tf.device("/CPU:0"):  # where an all-reduce leaves them
            ps = [tf.linalg.qr(p).q for p in firsts[: len(ms)]]
        qs = self._second.jointly([tf.matmul(m, p) for m, p in zip(ms.values(), ps, strict=True)])
        for (index, m), p, q in zip(ms.items(), ps, qs, strict=True):
            means[index] = approximation = tf.matmul(q, p, transpose_b=True)
            self._errors[index].assign(m - approximation, read_value=False)
            # A Q of zeros would stay zero in all later steps.
            self._qs[index].assign(tf.where(q == 0, self._qs[index], q), read_value=False)
        for index, mean in zip(self._whole, firsts[len(ms) :], strict=True):
            means[index] = mean
        return self._flat.concat(means)
