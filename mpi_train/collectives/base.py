"""Interface of an all-reduce, and the base of those that return the mean of a vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from mpi_train.collectives.exchange_log import ExchangeLog
from mpi_train.collectives.host_call import HostCall
from mpi_train.runtime.world import World


class StateArray(Protocol):
    """Array that lasts from step to step, such as a TensorFlow variable."""

    def numpy(self) -> np.ndarray: ...

    def assign(self, value: np.ndarray) -> Any: ...


class HostArray:
    """State array in host memory.

    Args:
        value: Initial value.
    """

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def numpy(self) -> np.ndarray:
        return self.value

    def assign(self, value: np.ndarray) -> None:
        self.value[...] = value


class AllReduce(ABC):
    """Operation inside a graph that replaces a vector by its mean over the ranks, or an approximation.

    Attributes:
        variables: State of this rank that lasts from step to step, by name.
        logs: Logs of its exchanges.
    """

    variables: Mapping[str, StateArray] = MappingProxyType({})
    logs: Sequence[ExchangeLog] = ()

    @abstractmethod
    def __call__(self, vector: tf.Tensor) -> tf.Tensor: ...


class MeanAllReduce(AllReduce, ABC):
    """All-reduce of a float32 vector in one call on the host.

    Args:
        world: At least two ranks.
        call: Function that the graph calls, ``mean`` if None. An aligned array that it returned must not be
            written before the call after the next: until then the graph may hold it.
    """

    def __init__(self, world: World, call: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        assert world.comm is not None
        self._comm = world.comm
        self._log = ExchangeLog()
        self.logs = [self._log]
        self._call = HostCall(call or self.mean, self._log)

    def __call__(self, vector: tf.Tensor) -> tf.Tensor:
        return self._call([vector], vector.shape)

    @abstractmethod
    def mean(self, vector: np.ndarray) -> np.ndarray:
        """Return the mean of ``vector`` over the ranks, the same bits on each: float32 (length,).

        It may lie in memory that the ranks share, and is valid until the next call.
        """

    @property
    def bytes_per_call(self) -> int:
        """Bytes that this rank sends in one call."""
        return self._log.bytes_per_call


def all_reduce_bytes(num_bytes: int, size: int) -> int:
    """Return the bytes that each of ``size`` ranks sends in an all-reduce of ``num_bytes``.

    A reduce-scatter and an all-gather, in each of which a rank sends all but one block: no all-reduce sends
    less (Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms"), and for vectors as long as a
    model MPI libraries choose an algorithm that sends as much.
    """
    return round(2 * num_bytes * (size - 1) / size)
