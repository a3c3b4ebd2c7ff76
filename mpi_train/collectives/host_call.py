"""Calls of Python functions from inside a TensorFlow graph."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mpi_train.collectives.exchange_log import ExchangeLog

# TensorFlow's version is pinned. On the first upgrade delete _Direct, and let HostCall use tf.numpy_function
# alone: this registry is not public, and a changed meaning of it would go unnoticed.
try:
    from tensorflow.python.ops.script_ops import EagerFunc, _py_funcs
except ImportError:
    EagerFunc, _py_funcs = object, None

_thread = threading.local()
_from_graphs: list[_Direct] = []


class _Direct(EagerFunc):
    """Function that TensorFlow's registry calls without its usual preparation.

    ``tf.numpy_function`` parses two version numbers of NumPy with a regular expression and enters and leaves
    a context of AutoGraph at each call. That takes 10 µs in a tight loop, and 120 µs in a step of 4 ms whose
    convolutions have evicted this code from the caches. A registered ``EagerFunc`` is called without it.
    """

    def __init__(self, function: Callable[..., np.ndarray]) -> None:
        self._function = function

    def __call__(self, device: str | None, token: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
        # TensorFlow takes the interpreter lock for each call. On a thread that Python did not start, that
        # creates a thread state, with memory mapped for it, and destroys it afterwards, which takes 40 µs.
        # Taking the lock once more, without ever releasing it, keeps the state.
        if not hasattr(_thread, "kept"):
            ctypes.pythonapi.PyGILState_Ensure()
            _thread.kept = True
        return self._function(*arrays)


class HostCall:
    """Function from arrays to an array (not a NumPy scalar), called from inside a graph.

    The graph passes its tensors as views, which are valid during the call, and takes the returned array as a
    tensor of type ``dtype``, both without a copy. So a returned array must not be written again while the
    graph may hold it. An array that is not aligned (``aligned.ALIGNMENT``) TensorFlow copies at once. Calls
    of one graph run in program order if its loops run one iteration at a time (``parallel_iterations=1``).
    """

    def __init__(
        self, function: Callable[..., np.ndarray], log: ExchangeLog, dtype: Any = tf.float32
    ) -> None:
        self._function, self._dtype = log.call(function), dtype

    def __call__(self, inputs: Sequence[tf.Tensor], shape: Sequence[int | None]) -> tf.Tensor:
        """Call the function inside a graph; ``shape`` is the known part of the result's shape."""
        if _py_funcs is None:
            result = tf.numpy_function(self._function, inputs, self._dtype, stateful=True)
        else:
            direct = _Direct(self._function)
            _from_graphs.append(direct)  # the registry holds it weakly
            with tf.device("/CPU:0"):
                token = _py_funcs.insert(direct)
                result = tf.raw_ops.PyFunc(input=list(inputs), token=token, Tout=[self._dtype])[0]
        result.set_shape(shape)
        return result
