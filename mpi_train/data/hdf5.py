"""One shard on disk: an HDF5 file of images and labels.

Chunks and metadata carry checksums; strings, which HDF5 does not protect, are compared with expected ones.
The file may come from an untrusted place: data is neither decompressed nor read through links to other files,
never larger in memory than on disk, and every error of HDF5 becomes a ``DataError``.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from mpi_train.data.examples import Examples
from mpi_train.runtime.errors import DataError, expect

Attributes = dict[str, "str | int | float"]
"""Description inside a shard: dataset, split, shard, num_shards, seed, partition, alpha."""

_CHUNK_BYTES = 1 << 18
"""Size of a chunk, which is read whole to check its sum; several must fit into HDF5's cache of 1 MiB."""


def write(path: Path, examples: Examples, attributes: Attributes) -> None:
    """Write a shard. Equal content gives equal bytes with the same version of HDF5."""
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
    """Read the examples of a file from number ``start`` on, as many as ``into`` holds, into its memory.

    The file must have ``num_examples`` examples in all, and the ``attributes``.

    Raises:
        DataError: The file is corrupt or has other contents.
    """
    rows = np.s_[start : start + len(into)]
    try:
        # Locks fail on some parallel file systems, and nothing writes to a finished shard.
        with _h5py().File(path, "r", locking=False) as file:
            for key, expected in attributes.items():
                found = file.attrs.get(key)
                expect(found == expected, path, f"attribute {key}: {expected}", found)
            for name, array in (("images", into.images), ("labels", into.labels)):
                dataset = file.get(name)
                _check(dataset, name, (num_examples, *array.shape[1:]), path)
                dataset.read_direct(array, rows)
    # The class of the error that h5py raises depends on the place of the damage.
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: expected a sound HDF5 file. Got: {' '.join(str(error).split())}") from error


def _check(dataset: Any, name: str, shape: tuple[int, ...], path: Path) -> None:
    """Check the type, the shape and the layout of an array before its memory is read."""
    expect(isinstance(dataset, _h5py().Dataset), path, f"an array {name}", "none")
    found = f"{dataset.dtype} {dataset.shape}"
    expect(dataset.dtype == np.uint8 and dataset.shape == shape, path, f"{name}: uint8 {shape}", found)
    # Chunks imply that the bytes are in this file; compressed chunks could expand to any size.
    plain = dataset.chunks and not dataset.is_virtual and dataset.fletcher32 and not dataset.compression
    expect(bool(plain), path, f"{name} in chunks with Fletcher32, not compressed", "another layout")
    small = math.prod(dataset.chunks) <= path.stat().st_size
    expect(small, path, f"{name} in chunks smaller than the file", dataset.chunks)


def _h5py() -> Any:
    """Import h5py late, because most parts of a job need no HDF5."""
    # HDF5 reads the variable when the library starts, which is the next line, unless Keras imported it first.
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
    import h5py

    return h5py
