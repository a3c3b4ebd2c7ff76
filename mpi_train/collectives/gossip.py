"""Gossip: each rank averages its weights with one other rank per step, one message whatever the world size.

At step k a rank sends to the rank 2^k further on, cycling through the powers of two below the world size: the
one-peer exponential graph of Assran et al. 2019, "Stochastic Gradient Push" (arXiv:1811.10792), and of Ying
et al. 2021 (arXiv:2110.13363). For a power of two of ranks, one cycle gives the exact mean of constant
weights. Sent and received weights count half each, so that the mean over all ranks is preserved.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import Context, Weights
from mpi_train.collectives.base import AllReduce, HostArray, two_buffers
from mpi_train.runtime.aligned import aligned_empty
from mpi_train.runtime.world import World


class Neighbours(AllReduce):
    """Mean of the vectors of this rank and one other."""

    def __init__(self, world: World, length: int) -> None:
        super().__init__(world)
        self._turn = HostArray(np.zeros((), np.int64))
        self.variables = {"turn": self._turn}
        self._distances = [2**k for k in range((world.size - 1).bit_length())]
        self._received = aligned_empty((length,), np.float32)
        self._means = two_buffers(length)
        self._exchange = self.log.part("all-reduce", self._comm.Sendrecv, num_bytes=4 * length)

    def mean(self, vector: np.ndarray) -> np.ndarray:
        distance = self._distances[int(self._turn.value) % len(self._distances)]
        self._turn.value += 1
        mean, rank, size = next(self._means), self._comm.rank, self._comm.size
        self._exchange(vector, (rank + distance) % size, 0, self._received, (rank - distance) % size)
        np.add(vector, self._received, out=mean)
        np.multiply(mean, np.float32(0.5), out=mean)
        return mean


class Gossip(Weights):
    """Average weights with one rank per step; at the end of an epoch all ranks have their mean."""

    def __init__(self, context: Context) -> None:
        self._neighbours = Neighbours(context.world, context.flat.num_padded)
        super().__init__(context.exact(context.flat.num_padded), self._neighbours)

    def weights(self, weights: keras.Variable, step: tf.Tensor, is_last: tf.Tensor) -> None:
        def exchange() -> tf.Operation:
            return weights.value.assign(self._neighbours(weights.value.read_value()), read_value=False)

        tf.cond(is_last, lambda: self.average(weights), exchange)
