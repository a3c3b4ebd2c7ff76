"""Point-to-point links between two ranks, from inside graphs: activations forward, gradients backward."""

from __future__ import annotations

import math
import time

import keras
import numpy as np
import tensorflow as tf
from mpi4py import MPI

from mpi_train.collectives.exchange_log import ExchangeLog, Traffic
from mpi_train.collectives.host_call import HostCall
from mpi_train.runtime.aligned import aligned_empty
from mpi_train.runtime.world import World


class Link:
    """One end of a link. Both ends agree in all arguments but ``neighbour`` and the depths.

    Args:
        world: The ranks.
        neighbour: Rank at the other end.
        like: Tensor of the graph that is sent, float32 or bfloat16.
        capacity: Largest number of examples in one message.
        receive_depth: Number of received tensors that may be in use when the next one arrives.
        send_depth: Number of messages that may be under way.
    """

    def __init__(
        self,
        world: World,
        neighbour: int,
        like: keras.KerasTensor,
        *,
        capacity: int,
        receive_depth: int,
        send_depth: int,
    ) -> None:
        assert world.comm is not None
        self._comm, self._neighbour = world.comm, neighbour
        self._shape, self._dtype = tuple(like.shape[1:]), tf.as_dtype(like.dtype)
        # NumPy has no bfloat16, so its bits travel as integers.
        self._wire = tf.float32 if self._dtype == tf.float32 else tf.uint16
        self._numbers = math.prod(self._shape)
        length, dtype = capacity * self._numbers, self._wire.as_numpy_dtype
        self._arriving = [aligned_empty((length,), dtype) for _ in range(receive_depth + 1)]
        self._leaving = [aligned_empty((length,), dtype) for _ in range(send_depth)]
        self._requests = [MPI.REQUEST_NULL] * send_depth
        self._num_received = self._num_sent = 0
        self.log = log = ExchangeLog()
        self._receive = HostCall(self._receive_now, log, self._wire)
        self._send = HostCall(log.part("send", self._send_now), log, tf.int32)
        self._probe = log.part("wait", self._comm.Probe)
        self._take = log.part("receive", self._comm.Recv)
        self._waiting_s, self._sent_bytes = 0.0, 0

    def receive(self, count: tf.Tensor, known: int | None) -> tf.Tensor:
        """Receive the next tensor, of ``count`` examples; ``known`` is their number or None."""
        received = self._receive([count], (known, *self._shape))
        return received if self._wire == self._dtype else tf.bitcast(received, self._dtype)

    def send(self, tensor: tf.Tensor) -> None:
        """Send a tensor of (examples, *shape); return before it has arrived."""
        self._send([tensor if self._wire == self._dtype else tf.bitcast(tensor, self._wire)], ())

    def _receive_now(self, count: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        self._probe(self._neighbour)
        self._waiting_s += time.perf_counter() - start
        array = self._arriving[self._num_received % len(self._arriving)][: int(count) * self._numbers]
        self._num_received += 1
        self._take(array, self._neighbour)
        return array.reshape(-1, *self._shape)

    def _send_now(self, array: np.ndarray) -> np.ndarray:
        turn = self._num_sent % len(self._leaving)
        self._num_sent += 1
        self._requests[turn].Wait()
        # TensorFlow frees its memory when this returns, so the array is copied. A send that waited for its
        # receiver would be a deadlock of two stages that send to each other.
        buffer = self._leaving[turn][: array.size]
        np.copyto(buffer, array.reshape(-1))
        self._requests[turn] = self._comm.Isend(buffer, self._neighbour)
        self._sent_bytes += array.nbytes
        return np.zeros((), np.int32)

    def take_traffic(self) -> Traffic:
        """Return the traffic since the last call, of this rank alone."""
        total_s = float(self.log.take_durations().sum())
        traffic = Traffic(total_s - self._waiting_s, self._waiting_s, self._sent_bytes)
        self._waiting_s, self._sent_bytes = 0.0, 0
        return traffic
