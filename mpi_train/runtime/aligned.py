"""Arrays that TensorFlow can use where they lie."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

ALIGNMENT = 64
"""Bytes. TensorFlow wants the memory of a tensor to start on such a boundary."""


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array whose memory starts on a boundary of 64 bytes."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(num_bytes + ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % ALIGNMENT
    return memory[offset : offset + num_bytes].view(dtype).reshape(shape)


def as_tensor(array: np.ndarray) -> tf.Tensor:
    """A tensor of ``array``, which must not change after this.

    Where it is aligned the tensor is in its memory; ``tf.convert_to_tensor`` copies arrays of uint8, for a
    while even twice. TensorFlow takes any address this way, and ends the process when it is not aligned.
    """
    import tensorflow as tf

    if array.ctypes.data % ALIGNMENT or not array.flags.c_contiguous:
        aligned = aligned_empty(array.shape, array.dtype)
        np.copyto(aligned, array)
        array = aligned
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
