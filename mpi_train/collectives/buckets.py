"""Gradients are averaged layer by layer, the last layer's first, while those of earlier layers are computed.

Backpropagation comes to the last layer first. Layers that follow each other are put together until they
have ``BUCKET_BYTES``, as many small all-reduces take longer than one (Li et al. 2020, "PyTorch
Distributed: Experiences on Accelerating Data Parallel Training", arXiv:2006.15704).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import AllReduce, Gradients
from mpi_train.collectives.background import Background
from mpi_train.collectives.host_call import HostCall
from mpi_train.collectives.traffic import Traffic
from mpi_train.models.flat import FlatModel
from mpi_train.monitor import timeline
from mpi_train.runtime.aligned import aligned_empty
from mpi_train.runtime.world import World

BUCKET_BYTES = 2**18
"""At the least; the first layers may have fewer."""

_NOTHING = np.empty(0, np.float32)


class Buckets(Gradients):
    """The same mean as that of the whole gradient, but for rounding.

    Args:
        world: At least two ranks.
        flat: The model.
        bucket_bytes: Of a bucket, at the least.

    Raises:
        PlatformError: as ``Background``.
    """

    def __init__(self, world: World, flat: FlatModel, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._exchange = _InBuckets(world, flat, bucket_bytes)
        super().__init__(self._exchange)

    def layers(self, gradients: list[tf.Tensor]) -> None:
        self._exchange.hand_over(gradients)


class _InBuckets(AllReduce):
    """Means of what ``hand_over`` was given."""

    def __init__(self, world: World, flat: FlatModel, bucket_bytes: int) -> None:
        self._flat = flat
        self.layers = grouped([4 * size for size in flat.sizes], bucket_bytes)
        self._gradient = np.zeros(flat.num_padded, np.float32)
        self._sums = np.zeros(flat.num_padded, np.float32)
        self._means = [aligned_empty((flat.num_padded,), np.float32) for _ in range(2)]
        parts = [slice(flat.starts[layers[0]], flat.starts[layers[-1] + 1]) for layers in self.layers]
        self._background = Background(world, [(self._gradient[part], self._sums[part]) for part in parts])
        self._starts = [HostCall(self._starter(number)) for number in range(len(parts))]
        self._collect = HostCall(self._mean)
        self._pack = timeline.traced("pack", self._lay_in)
        self._wait = timeline.traced("all-reduce", self._background.wait)
        self._unpack = timeline.traced("unpack", np.copyto)

    def hand_over(self, gradients: list[tf.Tensor]) -> None:
        """Called inside a graph, with the gradients of all layers, whenever each is there."""
        # In the order in which they are written here: TensorFlow keeps it, so that all ranks have the same.
        for layers, start in zip(self.layers, self._starts, strict=True):
            start([gradients[layer] for layer in layers], [0])

    def __call__(self, vector: tf.Tensor) -> tf.Tensor:
        """The mean of what was handed over, which ``vector`` is."""
        return self._collect([], vector.shape)

    @property
    def total_s(self) -> float:
        return sum(call.total_s for call in (*self._starts, self._collect))

    def take_traffic(self, world: World) -> Traffic:
        called_s = sum(float(call.take_durations().sum()) for call in (*self._starts, self._collect))
        return self._background.take_traffic(world, called_s)

    def _starter(self, number: int) -> Callable[..., np.ndarray]:
        """A function of the gradients of a bucket that begins with it."""

        def start(*gradients: np.ndarray) -> np.ndarray:
            self._pack(self.layers[number], gradients)
            self._background.start(number)
            return _NOTHING

        return start

    def _lay_in(self, layers: Sequence[int], gradients: Sequence[np.ndarray]) -> None:
        """Copies gradients to where MPI reads them; the padding between them stays 0."""
        for layer, gradient in zip(layers, gradients, strict=True):
            begin = self._flat.starts[layer]
            self._gradient[begin : begin + gradient.size] = gradient.ravel()

    def _mean(self) -> np.ndarray:
        self._means.reverse()
        self._wait()
        self._unpack(self._means[0], self._sums)
        return self._means[0]


def grouped(sizes: Sequence[int], smallest: int) -> list[range]:
    """Divides layers into buckets, those that come first in the backward pass first.

    Args:
        sizes: Bytes of each layer.
        smallest: What a bucket must have before another is begun.
    """
    stop = len(sizes)
    buckets = []
    while stop:
        start = next((first for first in range(stop - 1, -1, -1) if sum(sizes[first:stop]) >= smallest), 0)
        buckets.append(range(start, stop))
        stop = start
    return buckets
