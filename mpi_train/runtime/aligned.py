"""Arrays whose memory TensorFlow can use without a copy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

ALIGNMENT = 64
"""Boundary in bytes on which TensorFlow requires the memory of a tensor to start."""


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an uninitialised array whose memory starts on a boundary of 64 bytes."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(num_bytes + ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % ALIGNMENT
    return memory[offset : offset + num_bytes].view(dtype).reshape(shape)


def as_tensor(array: np.ndarray) -> tf.Tensor:
    """Return a tensor of ``array``, whose content must not change afterwards.

    The tensor shares the memory of an aligned array; ``tf.convert_to_tensor`` copies arrays of uint8. Through
    DLPack, TensorFlow accepts any address and crashes if it is not aligned, so other arrays are copied first.
    """
    import tensorflow as tf

    if array.ctypes.data % ALIGNMENT or not array.flags.c_contiguous:
        aligned = aligned_empty(array.shape, array.dtype)
        np.copyto(aligned, array)
        array = aligned
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
