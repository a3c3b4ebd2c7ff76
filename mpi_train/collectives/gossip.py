"""Each rank averages with one other a step, and what it got travels on: one message, however many ranks.

At step k a rank sends to the one 2^k further on, round and round over the powers of two below the number
of ranks: the one-peer exponential graph of Assran et al. 2019, "Stochastic Gradient Push"
(arXiv:1811.10792), and of Ying et al. 2021 (arXiv:2110.13363), by which a power of two of ranks has the
exact mean of what stood still after one round. What is sent and what is received count half each, so that
the mean over all ranks stays what it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import AllReduce, Held, Weights
from mpi_train.collectives.base import HostArray, MeanAllReduce
from mpi_train.collectives.traffic import Traffic
from mpi_train.monitor import timeline
from mpi_train.runtime.aligned import aligned_empty
from mpi_train.runtime.world import World


class Neighbours(MeanAllReduce):
    """The mean of this rank's vector and of another's."""

    def __init__(self, world: World, length: int) -> None:
        super().__init__(world, length)
        self.bytes_per_call = 4 * length
        self.turn = HostArray(np.zeros((), np.int64))
        self._distances = [2**k for k in range((world.size - 1).bit_length())]
        self._received = aligned_empty((length,), np.float32)
        self._means = [aligned_empty((length,), np.float32) for _ in range(2)]
        self._send = timeline.traced("all-reduce", self._comm.Sendrecv, num_bytes=self.bytes_per_call)

    def mean(self, vector: np.ndarray) -> np.ndarray:
        distance = self._distances[int(self.turn.value) % len(self._distances)]
        self.turn.value += 1
        self._means.reverse()
        mean, rank, size = self._means[0], self._comm.rank, self._comm.size
        self._send(vector, (rank + distance) % size, 0, self._received, (rank - distance) % size)
        np.add(vector, self._received, out=mean)
        np.multiply(mean, np.float32(0.5), out=mean)
        return mean


class Gossip(Weights):
    """Ranks' weights differ within an epoch; at its end all have their mean.

    Args:
        all_reduce: For that, over the flat buffer.
        world: The ranks.
        length: Of the buffer, in float32 numbers.
    """

    def __init__(self, all_reduce: AllReduce, world: World, length: int) -> None:
        super().__init__(all_reduce)
        self._neighbours = Neighbours(world, length)

    @property
    def variables(self) -> Mapping[str, Held]:
        return {**super().variables, "turn": self._neighbours.turn}

    def weights(self, weights: keras.Variable, step: tf.Tensor, is_last: tf.Tensor) -> None:
        def meet() -> tf.Operation:
            return weights.value.assign(self._neighbours(weights.value.read_value()), read_value=False)

        tf.cond(is_last, lambda: self.average(weights), meet)

    def take_traffic(self, world: World) -> Traffic:
        return super().take_traffic(world) + self._neighbours.take_traffic(world)

    def exchange_s(self) -> float:
        return super().exchange_s() + self._neighbours.total_s
