"""The way out of a TensorFlow graph to the host and back, and the clock on it."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from mpi_train.watch import activity

Result = TypeVar("Result")

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


class HostCall:
    """A function that exchanges arrays with other ranks, called from inside a graph.

    The graph hands its tensors to the host as views, which end with the call, and takes the array that comes
    back as a tensor, both without a copy. So an array that was returned must not be written again while
    the graph may hold it. Calls of one graph run in the order in which they were written, if a loop in it
    runs its iterations one after another (``parallel_iterations=1``).

    Args:
        function: From arrays to an array.
        dtype: Of what it returns.

    Attributes:
        total_s: Seconds of all calls so far.
    """

    def __init__(self, function: Callable[..., np.ndarray], dtype: tf.DType = tf.float32) -> None:
        self._function, self._dtype = function, dtype
        self._durations: list[float] = []
        self.total_s = 0.0

    def __call__(
        self, inputs: Sequence[tf.Tensor], shape: Sequence[int | None] | tf.TensorShape
    ) -> tf.Tensor:
        """Calls it; ``shape`` is that of the result, as far as it is known."""
        result = tf.numpy_function(self._run, inputs, self._dtype, stateful=True)
        result.set_shape(shape)
        return result

    def _run(self, *arrays: np.ndarray) -> np.ndarray:
        return self.timed(self._function, *arrays)

    def timed(self, function: Callable[..., Result], *args: Any) -> Result:
        """Calls another function, outside of any graph, that waits for other ranks too."""
        start = time.perf_counter()
        keep_thread_state()
        activity.calls += 1
        activity.inside = True
        try:
            result = function(*args)
            activity.inside = False
        except Exception as error:
            # Under MPI this ends all ranks. TensorFlow would bury it in tracebacks of its own.
            sys.excepthook(type(error), error, error.__traceback__)
            raise
        duration = time.perf_counter() - start
        self._durations.append(duration)
        self.total_s += duration
        return result

    def take_durations(self) -> np.ndarray:
        """Seconds of each call since this was last asked, waiting for other ranks included."""
        durations, self._durations = self._durations, []
        return np.array(durations, np.float64)
