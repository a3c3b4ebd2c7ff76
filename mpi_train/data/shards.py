"""A data set in shards, of which each rank reads its own range of examples only.

The number of ranks may differ from the number of shards: the examples of all shards, in their order, are
divided into balanced ranges. All bytes are checked: the bytes that a rank reads by HDF5's checksums, and each
whole file by its SHA-256, which exactly one of the ranks computes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from mpi_train.data import hdf5, manifest
from mpi_train.data.examples import Examples, RawData
from mpi_train.data.manifest import Manifest, ShardFile, Split, shard_name
from mpi_train.data.partition import IID, Partition, partition
from mpi_train.data.sources import how_to_prepare
from mpi_train.runtime import files
from mpi_train.runtime.aligned import aligned_empty
from mpi_train.runtime.errors import DataError, UsageError, expect, unwritable

_SHARD_NAME = re.compile(r"(train|test)-\d{5}-of-\d{5}\.h5")


def balanced_range(n: int, size: int, rank: int) -> tuple[int, int]:
    """Return the part (start, stop) of ``range(n)`` that belongs to ``rank`` of ``size`` ranks.

    Parts are contiguous and in rank order; the first ``n % size`` ranks get one more than the others.
    """
    share, extra = divmod(n, size)
    start = rank * share + min(rank, extra)
    return start, start + share + (rank < extra)


@dataclass(frozen=True)
class ShardSet:
    """The shards of one data set in one folder."""

    directory: Path
    manifest: Manifest

    @classmethod
    def open(cls, directory: Path, dataset: str) -> ShardSet:
        """Read the manifest, and no shard yet. Errors are those of ``read_manifest``."""
        return cls(directory, manifest.read_manifest(directory, dataset))

    def num_examples(self, split: str) -> int:
        """Return the number of examples of all ranks together."""
        return self.manifest.splits[split].num_examples

    def read(self, split: str, rank: int = 0, size: int = 1) -> Examples:
        """Read the examples of ``rank`` among ``size`` ranks, in the memory of their bytes and a few MB.

        Only the files that overlap with the rank's range are opened, and only this range is read.

        Returns:
            Images uint8 (n, height, width) or (n, height, width, channels), and labels uint8 (n,), each
            aligned to 64 bytes.

        Raises:
            UsageError: There are more ranks than examples.
            DataError: A shard is missing, truncated, altered, or differs from the manifest.
        """
        total = self.num_examples(split)
        if size > total:
            raise UsageError(
                f"expected at most as many ranks as {split} examples, {total}. Got: {size} ranks",
                remedy=f"at most {total} ranks (NP={total})",
            )
        return self.read_range(split, *balanced_range(total, size, rank))

    def read_range(self, split: str, start: int, stop: int) -> Examples:
        """Read the examples from number ``start`` to ``stop``. Results and errors are those of ``read``."""
        files = self.manifest.splits[split].files
        stops = accumulate(shard.num_examples for shard in files)
        ranges = ((index, end - files[index].num_examples, end) for index, end in enumerate(stops))
        parts = [(index, first, end) for index, first, end in ranges if first < stop and end > start]
        # All sizes are checked first, so that memory is allocated only for bytes that exist.
        with self._remedied():
            for index, _, _ in parts:
                self._check(files[index])
            own = _empty(stop - start, self.manifest.image_shape)
            for index, first, end in parts:
                if start <= first:
                    self._check(files[index], digest=True)
                low, high = max(start, first), min(stop, end)
                part = slice(low - start, high - start)
                self._read_shard(Examples(own.images[part], own.labels[part]), split, index, low - first)
        return own

    def read_some(self, split: str, numbers: np.ndarray) -> Examples:
        """Read the examples of ``numbers``, ascending; one arbitrary example if there are none."""
        if not len(numbers):
            return self.read_range(split, 0, 1)
        first = int(numbers[0])
        region = self.read_range(split, first, int(numbers[-1]) + 1)
        own = _empty(len(numbers), self.manifest.image_shape)
        np.take(region.images, numbers - first, axis=0, out=own.images)
        np.take(region.labels, numbers - first, axis=0, out=own.labels)
        return own

    def verify(self) -> None:
        """Check size and SHA-256 of every file. Raises ``DataError``."""
        with self._remedied():
            for split in self.manifest.splits.values():
                for shard in split.files:
                    self._check(shard, digest=True)

    @contextmanager
    def _remedied(self) -> Iterator[None]:
        """Add the command that makes these shards anew to a ``DataError``."""
        try:
            yield
        except DataError as error:
            error.remedy = how_to_prepare(self.manifest.dataset, self.directory)
            raise

    def _read_shard(self, into: Examples, split: str, index: int, start: int) -> None:
        made = self.manifest
        files = made.splits[split].files
        path, limit = self.directory / files[index].name, made.num_classes
        attributes = _attributes(made.dataset, split, index, len(files), made.seed, made.partition)
        hdf5.read_into(into, path, start, files[index].num_examples, attributes)
        largest = int(into.labels.max())
        expect(largest < limit, path, f"labels below {limit}", f"label {largest}")

    def _check(self, shard: ShardFile, *, digest: bool = False) -> None:
        """Check the size of a file, and its SHA-256 if that is asked for."""
        path = self.directory / shard.name
        try:
            size = path.stat().st_size
            expect(size == shard.bytes, path, f"{shard.bytes} bytes", size)
            found = files.sha256_of(path) if digest else shard.sha256
            expect(found == shard.sha256, path, f"SHA-256 {shard.sha256}", found)
        except OSError as error:
            expect(False, path, f"a file of {shard.bytes} bytes", error.strerror)


def _empty(n: int, image_shape: tuple[int, ...]) -> Examples:
    return Examples(aligned_empty((n, *image_shape), np.uint8), aligned_empty((n,), np.uint8))


def _attributes(
    dataset: str, split: str, index: int, num_shards: int, seed: int, method: Partition
) -> hdf5.Attributes:
    """Return the description that a shard carries."""
    names = ("dataset", "split", "shard", "num_shards", "seed", "partition", "alpha")
    values = (dataset, split, index, num_shards, seed, method.kind, method.alpha)
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def write_shards(
    raw: RawData, directory: Path, num_shards: int = 4, seed: int = 1, method: Partition = IID
) -> Manifest:
    """Divide a data set into shards, which replace those in ``directory``.

    Equal arguments give equal bytes with the same version of HDF5. The test split is one shard, in its
    original order. The old manifest is removed first and the new one, which is returned, is written last, so
    that a reader never finds an incomplete set.

    Raises:
        UsageError: The partition is impossible, or the folder is not writable.
        DataError: A label is out of range.
    """
    parts = partition(raw.train.labels, num_shards, seed, method)
    splits = {"train": (raw.train, parts), "test": (raw.test, [np.arange(len(raw.test))])}
    for name, (examples, _) in splits.items():
        largest = int(examples.labels.max())
        if largest >= raw.num_classes:
            raise DataError(f"{raw.name}: expected {name} labels below {raw.num_classes}. Got: {largest}")
    written: dict[str, list[ShardFile]] = {name: [] for name in splits}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / manifest.NAME).unlink(missing_ok=True)
        for file in directory.iterdir():
            if _SHARD_NAME.fullmatch(file.name):
                file.unlink()
        for name, (examples, indices) in splits.items():
            for index, part in enumerate(indices):
                path = directory / shard_name(name, index, len(indices))
                attributes = _attributes(raw.name, name, index, len(indices), seed, method)
                with files.replacing(path) as temporary:
                    own = Examples(examples.images[part], examples.labels[part])
                    hdf5.write(temporary, own, attributes)
                size = path.stat().st_size
                written[name].append(ShardFile(path.name, len(part), size, files.sha256_of(path)))
        made = Manifest(
            dataset=raw.name,
            class_names=raw.class_names,
            num_classes=raw.num_classes,
            image_shape=raw.image_shape,
            seed=seed,
            partition=method,
            raw_sha256=raw.sha256,
            splits={name: Split(len(splits[name][0]), tuple(shards)) for name, shards in written.items()},
        )
        manifest.write_manifest(directory, made)
    except OSError as error:
        raise unwritable(directory, error, flag="--data") from error
    return made
