"""The all-reduce of one flat buffer, callable from inside a TensorFlow graph."""

from __future__ import annotations

import time

import numpy as np
import tensorflow as tf
from mpi4py import MPI

from mpi_train.world import World


class MeanAllReduce:
    """Replaces a float32 vector by its mean over all ranks.

    The graph hands its tensor to the host as a view, MPI sums it into a buffer of this object, and
    the graph gets that buffer, again without a copy. There are two buffers, used in turn: the tensor
    that comes in may still be the one that went out the time before.

    Args:
        world: The ranks, with their communicator.
        length: Of the vector.

    """

    def __init__(self, world: World, length: int) -> None:
        assert world.comm is not None
        self._comm = world.comm
        self._inverse_size = np.float32(1 / world.size)
        self._buffers = [np.zeros(length, np.float32), np.zeros(length, np.float32)]
        self._turn = 0
        self._durations: list[float] = []

    def __call__(self, vector: tf.Tensor) -> tf.Tensor:
        mean = tf.numpy_function(self._on_host, [vector], tf.float32, stateful=True)
        mean.set_shape(vector.shape)
        return mean

    def _on_host(self, vector: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        self._turn ^= 1
        mean = self._buffers[self._turn]
        self._comm.Allreduce(vector, mean, op=MPI.SUM)
        np.multiply(mean, self._inverse_size, out=mean)
        self._durations.append(time.perf_counter() - start)
        return mean

    def take_durations(self) -> np.ndarray:
        """Seconds of each all-reduce since this was last called, waiting for other ranks included."""
        durations, self._durations = self._durations, []
        return np.array(durations, np.float64)
