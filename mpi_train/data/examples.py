"""Labelled images in memory: a part of a data set, and a whole one before it is divided into shards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpi_train.runtime.files import digest


@dataclass(frozen=True, eq=False)
class Examples:
    """Images with their labels.

    Attributes:
        images: uint8 (n, height, width) or (n, height, width, channels).
        labels: uint8 (n,), class numbers from 0.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class RawData:
    """A whole data set, in its original order.

    Attributes:
        name: Name in shards, tables and run records.
        train, test: The two splits.
        class_names: Name of each label, from label 0.
    """

    name: str
    train: Examples
    test: Examples
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image: (height, width) or (height, width, channels)."""
        return tuple(self.train.images.shape[1:])

    @property
    def sha256(self) -> str:
        """SHA-256 of the content, in hex: images then labels, train then test."""
        return digest((self.train.images, self.train.labels, self.test.images, self.test.labels))
