"""The way out of a TensorFlow graph to the host and back, and the clock on it."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from mpi_train.runtime.watchdog import activity

try:
    from tensorflow.python.ops.script_ops import EagerFunc, _py_funcs
except ImportError:  # they are not public
    EagerFunc, _py_funcs = object, None

Result = TypeVar("Result")

_KEPT = threading.local()
_from_graphs: list[_Direct] = []


def keep_thread_state() -> None:
    """Keeps Python's state of a thread that is TensorFlow's, so that a call from it costs 40 µs less.

    TensorFlow takes the interpreter's lock for each call from a graph. On a thread that Python did not
    start, this makes a thread state each time, with memory mapped for it, and takes it down again.
    Taking the lock once more and not giving it back keeps it.
    """
    if not hasattr(_KEPT, "done"):
        ctypes.pythonapi.PyGILState_Ensure()
        _KEPT.done = True


class _Direct(EagerFunc):
    """A function that TensorFlow's registry calls with nothing done around it."""

    def __init__(self, function: Callable[..., np.ndarray]) -> None:
        self._function = function

    def __call__(self, device: str | None, token: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return self._function(*arrays)


def call_from_graph(
    function: Callable[..., np.ndarray], inputs: Sequence[tf.Tensor], dtype: tf.DType
) -> tf.Tensor:
    """``tf.numpy_function`` without most of what that does around each call.

    It takes two version numbers of NumPy apart, by a regular expression, and goes in and out of a context of
    AutoGraph: 10 µs where it is called all the time, and 120 µs in a step of 4 ms, whose convolutions have
    driven all of this from the caches. None of it is done around what is registered as an ``EagerFunc``.
    The registry is not public: where there is none like it, this is ``tf.numpy_function``.

    Args:
        function: From arrays to an array, not to one of NumPy's numbers.
        inputs: What it is called with.
        dtype: Of what it returns.
    """
    if _py_funcs is None:
        return tf.numpy_function(function, inputs, dtype, stateful=True)
    direct = _Direct(function)
    _from_graphs.append(direct)  # the registry would let it go
    with tf.device("/CPU:0"):
        return tf.raw_ops.PyFunc(input=list(inputs), token=_py_funcs.insert(direct), Tout=[dtype])[0]


class HostCall:
    """A function that exchanges arrays with other ranks, called from inside a graph.

    The graph hands its tensors to the host as views, which end with the call, and takes the array that comes
    back as a tensor, both without a copy. So an array that was returned must not be written again while
    the graph may hold it; but one that is not aligned (``memory.ALIGNMENT``) TensorFlow copies at once.
    Calls of one graph run in the order in which they were written, if a loop in it runs its iterations one
    after another (``parallel_iterations=1``).

    Args:
        function: From arrays to an array, as for ``call_from_graph``.
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
        result = call_from_graph(partial(self.timed, self._function), inputs, self._dtype)
        result.set_shape(shape)
        return result

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
