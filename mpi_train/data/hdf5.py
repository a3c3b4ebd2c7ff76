"""One shard on disk: an HDF5 file of images and labels, in which every byte that counts is guarded.

Chunks and metadata carry checksums; what HDF5 leaves without one (strings) is compared.

The file may come from elsewhere: nothing is unpacked, followed to another file or larger in memory
than on disk, and whatever HDF5 has to say against it comes out as ``UnsoundError``.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from mpi_train.data.examples import Examples

Attributes = dict[str, "str | int | float"]
"""What a shard says of itself: dataset, split, shard, num_shards, seed, partition, alpha."""

# A chunk is read whole to check its sum; several must fit into HDF5's cache of 1 MiB.
_CHUNK_BYTES = 1 << 18


class UnsoundError(Exception):
    """A file that is not what it should be: what was expected, and what was received."""

    def __init__(self, expected: str, received: str) -> None:
        super().__init__(expected, received)
        self.expected = expected
        self.received = received


def write(path: Path, examples: Examples, attributes: Attributes) -> None:
    """Writes a shard. Equal content gives equal bytes with the same version of HDF5."""
    h5py = _h5py()
    # From version 1.10 of the format on, HDF5's metadata carries checksums too.
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    # The time of writing would make files with equal content differ.
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    with h5py.File(h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, creation, access)) as file:
        for name, array in (("images", examples.images), ("labels", examples.labels)):
            rows = min(len(array), max(1, _CHUNK_BYTES // math.prod(array.shape[1:])))
            file.create_dataset(name, data=array, chunks=(rows, *array.shape[1:]), fletcher32=True)
        file.attrs.update(attributes)


def read_into(into: Examples, path: Path, start: int, num_examples: int, attributes: Attributes) -> None:
    """Reads examples from ``start`` on, as many as ``into`` holds, into its memory.

    Args:
        into: uint8 arrays to overwrite.
        path: The shard.
        start: Number of the first example, in this file.
        num_examples: What the file must hold in all.
        attributes: What the file must say of itself.

    Raises:
        UnsoundError: HDF5 finds it corrupt, or it holds something else.
    """
    rows = np.s_[start : start + len(into)]
    try:
        # Locks fail on some parallel file systems, and nothing writes to a finished shard.
        with _h5py().File(path, "r", locking=False) as file:
            for key, expected in attributes.items():
                received = file.attrs.get(key)
                if received != expected:
                    raise UnsoundError(f"attribute {key}: {expected}", str(received)[:80])
            for name, array in (("images", into.images), ("labels", into.labels)):
                dataset = file.get(name)
                _check(dataset, name, (num_examples, *array.shape[1:]), path.stat().st_size)
                dataset.read_direct(array, rows)
    # Which of these h5py raises depends on the place of the damage.
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UnsoundError("a sound HDF5 file", " ".join(str(error).split())) from error


def _check(dataset: Any, name: str, shape: tuple[int, ...], file_bytes: int) -> None:
    if not isinstance(dataset, _h5py().Dataset):
        raise UnsoundError(f"an array {name}", "none")
    if dataset.dtype != np.uint8 or dataset.shape != shape:
        raise UnsoundError(f"{name}: uint8 {shape}", f"{dataset.dtype} {dataset.shape}")
    # Chunks also mean that the bytes are in this file; compressed, they could be any number.
    if dataset.chunks is None or dataset.is_virtual or not dataset.fletcher32 or dataset.compression:
        raise UnsoundError(f"{name} in chunks with Fletcher32, not compressed", "another layout")
    if math.prod(dataset.chunks) > file_bytes:
        raise UnsoundError(f"{name} in chunks smaller than the file", f"{dataset.chunks}")


def _h5py() -> Any:
    """h5py, imported late: most of what a job does needs no HDF5."""
    # Taken in when the library starts, which here is the next line, unless Keras was quicker.
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
    import h5py

    return h5py
