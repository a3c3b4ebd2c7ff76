"""Gradients averaged layer by layer, last layer first, while those of earlier layers are computed.

Backpropagation reaches the last layer first. Adjacent layers form buckets of at least ``BUCKET_BYTES``, as
many small all-reduces take longer than one (Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating
Data Parallel Training", arXiv:2006.15704).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import Context, Gradients
from mpi_train.collectives.background import Background
from mpi_train.collectives.base import AllReduce
from mpi_train.collectives.host_call import HostCall
from mpi_train.models.flat import FlatModel
from mpi_train.runtime.aligned import aligned_empty
from mpi_train.runtime.world import World

BUCKET_BYTES = 2**18
"""Smallest size of a bucket; the first layers may have fewer bytes."""

_EMPTY = np.empty(0, np.float32)


class Buckets(Gradients):
    """Average the gradients bucket by bucket: the mean of the whole gradient, except for rounding.

    Raises:
        PlatformError: as ``Background``.
    """

    def __init__(self, context: Context, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._exchange = _BucketAllReduce(context.world, context.flat, bucket_bytes)
        super().__init__(self._exchange)

    def layers(self, gradients: list[tf.Tensor]) -> None:
        self._exchange.start(gradients)


class _BucketAllReduce(AllReduce):
    """Means of the gradients that ``start`` was given."""

    def __init__(self, world: World, flat: FlatModel, bucket_bytes: int) -> None:
        self._flat = flat
        self._buckets = grouped([4 * size for size in flat.sizes], bucket_bytes)
        self._gradient = np.zeros(flat.num_padded, np.float32)
        self._sums = np.zeros(flat.num_padded, np.float32)
        self._means = [aligned_empty((flat.num_padded,), np.float32) for _ in range(2)]
        slices = [slice(flat.starts[layers[0]], flat.starts[layers[-1] + 1]) for layers in self._buckets]
        self._background = log = Background(world, [(self._gradient[s], self._sums[s]) for s in slices])
        self.logs = [log]
        self._starts = [HostCall(self._starter(number), log) for number in range(len(slices))]
        self._collect = HostCall(self._mean, log)
        self._pack = log.part("pack", self._copy_in)
        self._wait = log.part("all-reduce", log.wait)
        self._unpack = log.part("unpack", np.copyto)

    def start(self, gradients: list[tf.Tensor]) -> None:
        """Start the exchange of each bucket, inside a graph, as soon as its gradients are computed."""
        # TensorFlow keeps the order in which the calls are written, so that all ranks have the same one.
        for layers, start in zip(self._buckets, self._starts, strict=True):
            start([gradients[layer] for layer in layers], [0])

    def __call__(self, vector: tf.Tensor) -> tf.Tensor:
        return self._collect([], vector.shape)

    def _starter(self, number: int) -> Callable[..., np.ndarray]:
        """Return a function that starts the exchange of a bucket, given its gradients."""

        def start(*gradients: np.ndarray) -> np.ndarray:
            self._pack(self._buckets[number], gradients)
            self._background.start(number)
            return _EMPTY

        return start

    def _copy_in(self, layers: Sequence[int], gradients: Sequence[np.ndarray]) -> None:
        """Copy gradients to the buffer that MPI reads; the padding between them stays 0."""
        for layer, gradient in zip(layers, gradients, strict=True):
            begin = self._flat.starts[layer]
            self._gradient[begin : begin + gradient.size] = gradient.ravel()

    def _mean(self) -> np.ndarray:
        self._means.reverse()
        self._wait()
        self._unpack(self._means[0], self._sums)
        return self._means[0]


def grouped(sizes: Sequence[int], smallest: int) -> list[range]:
    """Divide layers into buckets, in the order of the backward pass.

    Args:
        sizes: Bytes of each layer.
        smallest: Bytes that a bucket must have before the next one begins.
    """
    stop = len(sizes)
    buckets = []
    while stop:
        start = next((first for first in range(stop - 1, -1, -1) if sum(sizes[first:stop]) >= smallest), 0)
        buckets.append(range(start, stop))
        stop = start
    return buckets
