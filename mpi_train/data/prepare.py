"""From a data set's name to sound shards on disk, doing only what is not done yet."""

from __future__ import annotations

import os
from pathlib import Path

from mpi_train.data.partition import IID, Partition
from mpi_train.data.shards import ShardSet, write_shards
from mpi_train.data.sources import find_raw, require_dataset
from mpi_train.runtime.errors import DataError, UsageError


def prepare(
    dataset: str,
    directory: Path,
    *,
    num_shards: int = 4,
    seed: int = 1,
    partition: Partition = IID,
    source: Path | None = None,
) -> bool:
    """Makes ``directory`` hold the shards that are asked for.

    Args:
        dataset: One of ``sources.DATASETS``.
        directory: Where the shards go.
        num_shards: Of the training split.
        seed: Of the partition, and of the drawing where the data is synthetic.
        partition: How the training split is cut.
        source: Folder of the raw files; see ``sources.find_raw``.

    Returns:
        False when they were there already, every byte of them, and nothing was done.

    Raises:
        UsageError: an unknown data set, a partition that cannot be made, a folder that cannot be written.
        MissingRawDataError: no raw files, and nothing to download from.
        DataError: corrupt raw files.
    """
    require_dataset(dataset)
    if _is_there(dataset, directory, num_shards, seed, partition):
        return False
    _require_writable(directory)
    raw = find_raw(dataset, source, seed)
    write_shards(raw, directory, num_shards, seed, partition.kind, partition.alpha)
    return True


def _require_writable(directory: Path) -> None:
    """Before a download or a drawing that would be for nothing."""
    nearest = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(
            f"--data: expected a folder that can be written. Got: {directory}",
            remedy="--data with another folder",
        )


def _is_there(dataset: str, directory: Path, num_shards: int, seed: int, partition: Partition) -> bool:
    try:
        shards = ShardSet.open(directory, dataset)
        made = shards.manifest
        if (len(made.splits["train"].files), made.seed, made.partition) != (num_shards, seed, partition):
            return False
        shards.verify()
    except DataError:
        # Missing or corrupt, and either way to be made now.
        return False
    return True
