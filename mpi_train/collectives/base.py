"""What all collectives share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import AllReduce
from mpi_train.collectives.host_call import HostCall
from mpi_train.collectives.traffic import Traffic, moving_s
from mpi_train.runtime.world import World


class MeanAllReduce(AllReduce, ABC):
    """Replaces a float32 vector by its mean over all ranks, inside a graph.

    Args:
        world: The ranks.
        length: Of the vector.
        call: What the graph calls on the host, if not ``mean``. An aligned array that it returned must not be
            written again before the call after the next one: until then the graph may still hold it.

    Attributes:
        bytes_per_call: What a rank sends in one.
    """

    def __init__(
        self, world: World, length: int, call: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> None:
        assert world.comm is not None
        self._comm = world.comm
        self._call = HostCall(call or self.mean)
        self.bytes_per_call = all_reduce_bytes(4 * length, world.size)

    def __call__(self, vector: tf.Tensor) -> tf.Tensor:
        return self._call([vector], vector.shape)

    @abstractmethod
    def mean(self, vector: np.ndarray) -> np.ndarray:
        """The mean of ``vector`` over the ranks, the same bits on each: float32 (length,).

        It may lie in memory that the ranks share: it is valid until the next call, or ``free``.
        """

    def free(self) -> None:
        """Gives back what the ranks share; on all of them together. It cannot be called after this."""

    @property
    def total_s(self) -> float:
        """As ``HostCall``."""
        return self._call.total_s

    def take_traffic(self, world: World) -> Traffic:
        """As ``AllReduce``."""
        durations = self._call.take_durations()
        moving = float(moving_s(durations, world).sum())
        return Traffic(moving, float(durations.sum()) - moving, len(durations) * self.bytes_per_call)


class HostArray:
    """An array on the host that lasts from step to step.

    Args:
        value: At first.
    """

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def numpy(self) -> np.ndarray:
        return self.value

    def assign(self, value: np.ndarray) -> None:
        self.value[...] = value


def all_reduce_bytes(num_bytes: int, size: int) -> int:
    """What each of ``size`` ranks sends in an all-reduce of ``num_bytes``, over wires or through memory.

    A reduce-scatter and an all-gather, in which each sends all but one part: no all-reduce sends less
    (Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms"), and for vectors as long as a model
    MPI libraries use one that sends as much.
    """
    return round(2 * num_bytes * (size - 1) / size)
