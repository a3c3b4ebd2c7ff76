"""Gradients averaged layer by layer, last layer first, while those of earlier layers are computed.

Backpropagation reaches the last layer first. Adjacent layers form buckets of at least ``BUCKET_BYTES``, as
many small all-reduces take longer than one (Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating
Data Parallel Training", arXiv:2006.15704).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import Averaging, Context
from mpi_train.collectives.background import Background
from mpi_train.collectives.base import two_buffers
from mpi_train.collectives.host_call import HostCall

BUCKET_BYTES = 2**18
"""Smallest size of a bucket; the first layers may have fewer bytes."""


class Buckets(Averaging):
    """Average the gradients bucket by bucket: the mean of the whole gradient, except for rounding.

    Raises:
        PlatformError: as ``Background``.
    """

    def __init__(self, context: Context, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._flat = flat = context.flat
        self._buckets = grouped([4 * size for size in flat.sizes], bucket_bytes)
        self._gradient, self._sums = np.zeros((2, flat.num_padded), np.float32)
        self._means = two_buffers(flat.num_padded)
        slices = [slice(flat.starts[layers[0]], flat.starts[layers[-1] + 1]) for layers in self._buckets]
        pairs = [(self._gradient[part], self._sums[part]) for part in slices]
        self._background = log = Background(context.world, pairs)
        self.background = [log]
        self._starts = [HostCall(partial(self._start, number), log) for number in range(len(slices))]
        self._collect = HostCall(self._mean, log)
        self._pack = log.part("pack", self._copy_in)
        self._wait = log.part("all-reduce", log.wait)
        self._unpack = log.part("unpack", np.copyto)

    def layers(self, gradients: list[tf.Tensor]) -> None:
        # Each exchange starts as soon as the gradients of its bucket are computed. TensorFlow keeps the order
        # in which the calls are written, so that all ranks have the same one.
        for layers, start in zip(self._buckets, self._starts, strict=True):
            start([gradients[layer] for layer in layers], [0])

    def gradient(self, gradient: tf.Tensor) -> tf.Tensor:
        return self._collect([], gradient.shape)

    def _start(self, number: int, *gradients: np.ndarray) -> np.ndarray:
        self._pack(self._buckets[number], gradients)
        self._background.start(number)
        return np.empty(0, np.float32)

    def _copy_in(self, layers: Sequence[int], gradients: Sequence[np.ndarray]) -> None:
        """Copy gradients to the buffer that MPI reads; the padding between them stays 0."""
        for layer, gradient in zip(layers, gradients, strict=True):
            begin = self._flat.starts[layer]
            self._gradient[begin : begin + gradient.size] = gradient.ravel()

    def _mean(self) -> np.ndarray:
        mean = next(self._means)
        self._wait()
        self._unpack(mean, self._sums)
        return mean


def grouped(sizes: Sequence[int], smallest: int) -> list[range]:
    """Divide layers of ``sizes`` bytes into buckets of ``smallest`` bytes or more, the last layers first."""
    stop = len(sizes)
    buckets = []
    while stop:
        start = next((first for first in range(stop - 1, -1, -1) if sum(sizes[first:stop]) >= smallest), 0)
        buckets.append(range(start, stop))
        stop = start
    return buckets
