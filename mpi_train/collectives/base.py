"""Base of the all-reduces, and what several collectives need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from mpi_train.collectives.exchange_log import ExchangeLog
from mpi_train.collectives.host_call import HostCall
from mpi_train.runtime.aligned import aligned_empty
from mpi_train.runtime.world import World


class StateArray(Protocol):
    """Array that lasts from step to step, such as a TensorFlow variable."""

    def numpy(self) -> np.ndarray: ...

    def assign(self, value: np.ndarray) -> Any: ...


class HostArray:
    """State array in host memory."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def numpy(self) -> np.ndarray:
        return self.value

    def assign(self, value: np.ndarray) -> None:
        self.value[...] = value


class AllReduce(ABC):
    """Operation inside a graph that replaces a float32 vector by its mean over the ranks, or close to it.

    Subclasses are made from the world and the vector length, in float32 numbers.

    Args:
        world: At least two ranks.
        call: Function on the host that the graph calls, ``mean`` if None. An aligned array that it returned
            must not be written before the call after the next: until then the graph may hold it.

    Attributes:
        variables: State of this rank that lasts from step to step, by name.
    """

    variables: Mapping[str, StateArray] = MappingProxyType({})

    def __init__(self, world: World, call: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        assert world.comm is not None
        self._comm = world.comm
        self._inverse_size = np.float32(1 / world.size)
        self.log = ExchangeLog()
        self._call = HostCall(call or self.mean, self.log)

    def __call__(self, vector: tf.Tensor) -> tf.Tensor:
        return self._call([vector], vector.shape)

    def jointly(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Return the means of several tensors, from one exchange of all their numbers."""
        mean = self(tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0))
        means = tf.split(mean, [tensor.shape.num_elements() for tensor in tensors])
        return [tf.reshape(each, tensor.shape) for each, tensor in zip(means, tensors, strict=True)]

    @abstractmethod
    def mean(self, vector: np.ndarray) -> np.ndarray:
        """Return the mean of ``vector`` over the ranks, the same bits on each: float32 (length,).

        It may lie in memory that the ranks share, and is valid until the next call.
        """


def two_buffers(length: int) -> Iterator[np.ndarray]:
    """Iterate without end over two aligned float32 vectors in turn, uninitialised."""
    return cycle([aligned_empty((length,), np.float32) for _ in range(2)])


def all_reduce_bytes(num_bytes: int, size: int) -> int:
    """Return the bytes that each of ``size`` ranks sends in an all-reduce of ``num_bytes``.

    A reduce-scatter and an all-gather, in each of which a rank sends all but one block: no all-reduce sends
    less (Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms"), and for vectors as long as a
    model MPI libraries choose an algorithm that sends as much.
    """
    return round(2 * num_bytes * (size - 1) / size)
