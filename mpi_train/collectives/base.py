"""What all collectives share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import tensorflow as tf

from mpi_train.host_calls import HostCall
from mpi_train.world import World


class MeanAllReduce(ABC):
    """Replaces a float32 vector by its mean over all ranks, inside a graph.

    An array that ``mean`` returned must not be written again before the call after the next one: until then
    the graph may still hold it.

    Args:
        world: The ranks.
        length: Of the vector.

    Attributes:
        bytes_per_call: What a rank sends in one.
    """

    def __init__(self, world: World, length: int) -> None:
        assert world.comm is not None
        self._comm = world.comm
        self._call = HostCall(self.mean)
        self.bytes_per_call = all_reduce_bytes(4 * length, world.size)

    def __call__(self, vector: tf.Tensor) -> tf.Tensor:
        return self._call([vector], vector.shape)

    @abstractmethod
    def mean(self, vector: np.ndarray) -> np.ndarray:
        """The mean of ``vector`` over the ranks, the same bits on each: float32 (length,), aligned."""

    @property
    def total_s(self) -> float:
        """As ``HostCall``."""
        return self._call.total_s

    def take_durations(self) -> np.ndarray:
        """As ``HostCall``."""
        return self._call.take_durations()


def all_reduce_bytes(num_bytes: int, size: int) -> int:
    """What each of ``size`` ranks sends in an all-reduce of ``num_bytes``, over wires or through memory.

    A reduce-scatter and an all-gather, in which each sends all but one part: no all-reduce sends less
    (Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms"), and for vectors as long as a model
    MPI libraries use one that sends as much.
    """
    return round(2 * num_bytes * (size - 1) / size)
