"""Of each layer's gradient, a matrix, ranks exchange its best approximation of low rank.

Vogels, Karimireddy & Jaggi 2019, "PowerSGD" (arXiv:1905.13727). A matrix M (n, m) is approximated by
Q P^T with Q (n, r) and P (m, r): one step of the power method, P = M^T Q and then Q = M P, goes on from the
Q of the step before, and as both products are linear in M, those of the ranks' mean are the means of the
ranks'. What the approximation lacks of a rank's own M is added to its next gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import AllReduce
from mpi_train.collectives.traffic import Traffic
from mpi_train.models.flat import FlatModel
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.world import World

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Matrix:
    """A kernel whose gradient is approximated, as (all axes but the last, the last).

    Attributes:
        index: Of the weight in the model.
        q: float32 (n, r), the same on all ranks.
        error: float32 (n, m): what this rank's gradients had and the approximations had not.
    """

    index: int
    q: tf.Variable
    error: tf.Variable


class PowerSGD(AllReduce):
    """Two small all-reduces stand for one of the gradient.

    Biases, and kernels whose bytes would not even halve, go with the first as they are.

    Args:
        make_all_reduce: Gives one for a length in float32 numbers.
        flat: The model.
        rank: Of the approximations.
        seed: Of the first Q.

    Raises:
        UsageError: no kernel's bytes would halve.
    """

    def __init__(
        self, make_all_reduce: Callable[[int], AllReduce], flat: FlatModel, rank: int, seed: int
    ) -> None:
        self._flat = flat
        draw = np.random.default_rng(seed).standard_normal
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
        self._first = _Together(make_all_reduce, [*ps, *(flat.shapes[index] for index in self._whole)])
        self._second = _Together(make_all_reduce, [tuple(matrix.q.shape) for matrix in self._matrices])
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
        # Householder's QR: of a gradient of zeros or of a lower rank it makes a basis too, and no NaN.
        with tf.device("/CPU:0"):  # where an all-reduce leaves them
            ps = [tf.linalg.qr(p).q for p in firsts[: len(ms)]]
        qs = self._second([tf.matmul(m, p) for m, p in zip(ms, ps, strict=True)])
        for matrix, m, p, q in zip(self._matrices, ms, ps, qs, strict=True):
            means[matrix.index] = approximation = tf.matmul(q, p, transpose_b=True)
            matrix.error.assign(m - approximation, read_value=False)
            # From a Q of zeros no later step would find a way out.
            matrix.q.assign(tf.where(q == 0, matrix.q, q), read_value=False)
        for index, mean in zip(self._whole, firsts[len(ms) :], strict=True):
            means[index] = mean
        return self._flat.concat(means)

    @property
    def total_s(self) -> float:
        return self._first.all_reduce.total_s + self._second.all_reduce.total_s

    def take_traffic(self, world: World) -> Traffic:
        return self._first.all_reduce.take_traffic(world) + self._second.all_reduce.take_traffic(world)


class _Together:
    """The means of several tensors over the ranks, in one all-reduce.

    Args:
        make_all_reduce: As for ``PowerSGD``.
        shapes: Of the tensors.
    """

    def __init__(self, make_all_reduce: Callable[[int], AllReduce], shapes: Sequence[Shape]) -> None:
        self._shapes = shapes
        self._sizes = [math.prod(shape) for shape in shapes]
        self.all_reduce = make_all_reduce(sum(self._sizes))

    def __call__(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        mean = self.all_reduce(tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0))
        pieces = tf.split(mean, self._sizes)
        return [tf.reshape(piece, shape) for piece, shape in zip(pieces, self._shapes, strict=True)]
