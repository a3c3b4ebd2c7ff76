"""A data set cut into shards, of which each rank reads its own part and no other.

The number of ranks need not be the number of shards: a split's shards laid end to end are divided
into balanced ranges. Every byte is guarded: what a rank reads by HDF5's checksums; each whole file
by its SHA-256, which exactly one of the ranks computes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpi_train.data import hdf5
from mpi_train.data import manifest as manifests
from mpi_train.data.examples import Examples, RawData
from mpi_train.data.hdf5 import UnsoundError
from mpi_train.data.manifest import Manifest, ShardFile, Split, shard_name
from mpi_train.data.partition import Partition
from mpi_train.data.partition import partition as divide
from mpi_train.data.progress_bar import progress
from mpi_train.data.sources import how_to_prepare
from mpi_train.runtime import files
from mpi_train.runtime.aligned import aligned_empty
from mpi_train.runtime.errors import DataError, UsageError

__all__ = ["Examples", "ShardSet", "balanced_range", "write_shards"]


def balanced_range(n: int, size: int, rank: int) -> tuple[int, int]:
    """The part of ``range(n)`` that is ``rank``'s of ``size``, as (start, stop).

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
        """Reads the manifest, and no shard yet.

        Raises:
            UsageError: nothing there, and no data set has this name.
            DataError: no manifest, or not one of ``dataset``.
        """
        return cls(directory, manifests.read_manifest(directory, dataset))

    def num_examples(self, split: str) -> int:
        """Number of examples of all ranks together."""
        return self.manifest.splits[split].num_examples

    def read(self, split: str, rank: int = 0, size: int = 1) -> Examples:
        """Reads one rank's examples, with no more memory than their bytes and a few MB.

        Opens only the files that the rank's range touches, and reads only its part of them.

        Args:
            split: ``train`` or ``test``.
            rank, size: Whose part of how many.

        Returns:
            Images uint8 (n, height, width) or (n, height, width, channels), and labels uint8 (n,),
            each aligned to 64 bytes.

        Raises:
            UsageError: more ranks than examples.
            DataError: a shard is missing, truncated, altered, or not what the manifest says.
        """
        return self.read_range(split, *self.range_of(split, rank, size))

    def range_of(self, split: str, rank: int, size: int) -> tuple[int, int]:
        """Numbers of the first of a rank's examples and of the one after the last.

        Raises:
            UsageError: more ranks than examples.
        """
        total = self.num_examples(split)
        if size > total:
            raise UsageError(
                f"expected at most as many ranks as {split} examples, {total}. Got: {size} ranks",
                remedy=f"at most {total} ranks (NP={total})",
            )
        return balanced_range(total, size, rank)

    def read_range(self, split: str, start: int, stop: int) -> Examples:
        """The examples from number ``start`` to ``stop``, as ``read`` returns them and raising as it does."""
        touched = list(_touched(self.manifest.splits[split], start, stop))
        # All sizes before the first byte: memory is taken for what is really there.
        for part in touched:
            self._check_size(part.shard)
        own = Examples(
            aligned_empty((stop - start, *self.manifest.image_shape), np.uint8),
            aligned_empty((stop - start,), np.uint8),
        )
        for part in touched:
            if start <= part.first:
                self._check_digest(part.shard)
            low, high = max(start, part.first), min(stop, part.first + part.shard.num_examples)
            into = Examples(own.images[low - start : high - start], own.labels[low - start : high - start])
            self._read_shard(into, split, part, low - part.first)
        return own

    def read_some(self, split: str, numbers: np.ndarray) -> Examples:
        """The examples of these ``numbers``, ascending; at least one example, whatever it is.

        Raises:
            DataError: as ``read``.
        """
        first, stop = (int(numbers[0]), int(numbers[-1]) + 1) if len(numbers) else (0, 1)
        region = self.read_range(split, first, stop)
        chosen = numbers - first if len(numbers) else np.zeros(1, np.int64)
        own = Examples(
            aligned_empty((len(chosen), *region.images.shape[1:]), np.uint8),
            aligned_empty((len(chosen),), np.uint8),
        )
        np.take(region.images, chosen, axis=0, out=own.images)
        np.take(region.labels, chosen, axis=0, out=own.labels)
        return own

    def verify(self) -> None:
        """Checks size and SHA-256 of every file of every split. Raises ``DataError``."""
        for split in self.manifest.splits.values():
            for shard in split.files:
                self._check_size(shard)
                self._check_digest(shard)

    def _read_shard(self, into: Examples, split: str, part: _Part, start: int) -> None:
        made = self.manifest
        attributes = _attributes(
            made.dataset, split, part.index, len(made.splits[split].files), made.seed, made.partition
        )
        path = self.directory / part.shard.name
        try:
            hdf5.read_into(into, path, start, part.shard.num_examples, attributes)
        except UnsoundError as error:
            raise self._bad(part.shard, error.expected, error.received) from error
        largest = int(into.labels.max())
        if largest >= made.num_classes:
            raise self._bad(part.shard, f"labels below {made.num_classes}", f"label {largest}")

    def _check_size(self, shard: ShardFile) -> None:
        try:
            received = (self.directory / shard.name).stat().st_size
        except OSError as error:
            raise self._bad(shard, f"a file of {shard.bytes} bytes", str(error.strerror)) from error
        if received != shard.bytes:
            raise self._bad(shard, f"{shard.bytes} bytes", f"{received}")

    def _check_digest(self, shard: ShardFile) -> None:
        try:
            received = files.sha256_of(self.directory / shard.name)
        except OSError as error:
            raise self._bad(shard, "a file that can be read", str(error.strerror)) from error
        if received != shard.sha256:
            raise self._bad(shard, f"SHA-256 {shard.sha256}", received)

    def _bad(self, shard: ShardFile, expected: str, received: str) -> DataError:
        return DataError(
            f"{self.directory / shard.name}: expected {expected}. Got: {received}",
            remedy=how_to_prepare(self.manifest.dataset, self.directory),
        )


@dataclass(frozen=True)
class _Part:
    """A shard's place in its split: its index, and the number of its first example."""

    index: int
    first: int
    shard: ShardFile


def _touched(split: Split, start: int, stop: int) -> Iterator[_Part]:
    """The shards that hold examples from ``start`` to ``stop``."""
    first = 0
    for index, shard in enumerate(split.files):
        if first < stop and first + shard.num_examples > start:
            yield _Part(index, first, shard)
        first += shard.num_examples


_SHARD_NAME = re.compile(r"(train|test)-\d{5}-of-\d{5}\.h5")


def write_shards(
    raw: RawData,
    directory: Path,
    num_shards: int = 4,
    seed: int = 1,
    partition: str = "iid",
    alpha: float | None = None,
) -> Manifest:
    """Cuts a data set into shards, in place of those that ``directory`` held before.

    Equal arguments give files with equal bytes (with the same version of HDF5). The manifest goes
    first and comes back last, so that what a reader finds is a whole set or none.

    Args:
        raw: The data set.
        directory: Made when it is missing.
        num_shards: Of the training split; the test split is one, in its original order.
        seed: Of the partition.
        partition, alpha: See ``mpi_train.data.partition``.

    Returns:
        What was written as ``manifest.json``.

    Raises:
        UsageError: a partition that cannot be made, or a folder that cannot be written.
        DataError: labels out of range.
    """
    cut = Partition(partition, alpha)
    parts = divide(raw.train.labels, num_shards, seed, partition, alpha)
    splits = {"train": (raw.train, parts), "test": (raw.test, [np.arange(len(raw.test))])}
    for name, (examples, _) in splits.items():
        largest = int(examples.labels.max())
        if largest >= raw.num_classes:
            raise DataError(f"{raw.name}: expected {name} labels below {raw.num_classes}. Got: {largest}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / manifests.NAME).unlink(missing_ok=True)
        for file in directory.iterdir():
            if _SHARD_NAME.fullmatch(file.name):
                file.unlink()
        written: dict[str, list[ShardFile]] = {name: [] for name in splits}
        with progress(f"writing shards of {raw.name}", len(raw.train) + len(raw.test)) as advance:
            for name, (examples, indices) in splits.items():
                for index, part in enumerate(indices):
                    path = directory / shard_name(name, index, len(indices))
                    attributes = _attributes(raw.name, name, index, len(indices), seed, cut)
                    with files.replacing(path) as temporary:
                        own = Examples(examples.images[part], examples.labels[part])
                        hdf5.write(temporary, own, attributes)
                    size = path.stat().st_size
                    written[name].append(ShardFile(path.name, len(part), size, files.sha256_of(path)))
                    advance(len(part))
        manifest = Manifest(
            dataset=raw.name,
            class_names=raw.class_names,
            num_classes=raw.num_classes,
            image_shape=raw.image_shape,
            seed=seed,
            partition=cut,
            raw_sha256=raw.sha256,
            splits={name: Split(len(splits[name][0]), tuple(shards)) for name, shards in written.items()},
        )
        manifests.write_manifest(directory, manifest)
    except OSError as error:
        raise UsageError(
            f"--data: expected a folder that can be written. Got: {directory} ({error})",
            remedy="--data with another folder",
        ) from error
    return manifest


def _attributes(
    dataset: str, split: str, index: int, num_shards: int, seed: int, cut: Partition
) -> hdf5.Attributes:
    """What a shard says of itself."""
    attributes: hdf5.Attributes = {
        "dataset": dataset,
        "split": split,
        "shard": index,
        "num_shards": num_shards,
        "seed": seed,
        "partition": cut.kind,
    }
    return attributes if cut.alpha is None else {**attributes, "alpha": cut.alpha}
