"""What all collectives share: the way out of the graph and back, and the clock."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from abc import ABC, abstractmethod

import numpy as np
import tensorflow as tf

from mpi_train.watch import activity
from mpi_train.world import World

_KEPT = threading.local()


def keep_thread_state() -> None:
    """Keeps Python's state of a thread that is TensorFlow's, so that a call from it costs 40 us less.

    TensorFlow takes the interpreter's lock for each call from a graph. On a thread that Python did not
    start, this makes a thread state each time, with memory mapped for it, and takes it down again.
    Taking the lock once more and not giving it back keeps it.
    """
    if not hasattr(_KEPT, "done"):
        ctypes.pythonapi.PyGILState_Ensure()
        _KEPT.done = True


class MeanAllReduce(ABC):
    """Replaces a float32 vector by its mean over all ranks, inside a graph.

    The graph hands its tensor to the host as a view, and takes the array that comes back as a tensor,
    both without a copy. So an array that was returned must not be written again before the call after
    the next one: until then the graph may still hold it. A loop in the graph must run its iterations one
    after another (``parallel_iterations=1``), or it would hold more of them.
    """

    def __init__(self, world: World) -> None:
        assert world.comm is not None
        self._comm = world.comm
        self._durations: list[float] = []

    def __call__(self, vector: tf.Tensor) -> tf.Tensor:
        mean = tf.numpy_function(self._on_host, [vector], tf.float32, stateful=True)
        mean.set_shape(vector.shape)
        return mean

    def _on_host(self, vector: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        keep_thread_state()
        activity.calls += 1
        activity.inside = True
        try:
            mean = self.mean(vector)
            activity.inside = False
        except Exception as error:
            # Under MPI this ends all ranks. TensorFlow would bury it in tracebacks of its own.
            sys.excepthook(type(error), error, error.__traceback__)
            raise
        self._durations.append(time.perf_counter() - start)
        return mean

    @abstractmethod
    def mean(self, vector: np.ndarray) -> np.ndarray:
        """The mean of ``vector`` over the ranks, the same bits on each: float32 (length,), aligned."""

    def take_durations(self) -> np.ndarray:
        """Seconds of each call since this was last asked, waiting for other ranks included."""
        durations, self._durations = self._durations, []
        return np.array(durations, np.float64)
