"""CIFAR-10's binary version: one byte of label and 3,072 of pixels an example, in six files of a tar archive.

Source: https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version". Not the Python version, which is
pickled: code, not data.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpi_train.data.examples import Examples
from mpi_train.runtime.errors import DataError

SHAPE = (32, 32, 3)
_RECORD = 1 + 32 * 32 * 3


def read_batches(path: Path, names: Sequence[str], num_examples: int) -> Examples:
    """Reads files of the archive, one after another. Nothing is unpacked to disk.

    Args:
        path: The archive, ``cifar-10-binary.tar.gz``.
        names: Members, such as ``cifar-10-batches-bin/data_batch_1.bin``.
        num_examples: That they must hold together, the same number each.

    Returns:
        Images uint8 (num_examples, 32, 32, 3), labels uint8 (num_examples,).

    Raises:
        DataError: not such an archive, or a member is missing or of another size.
    """
    size = num_examples // len(names) * _RECORD
    records = np.empty((num_examples, _RECORD), np.uint8)
    flat = records.reshape(len(names), size)
    try:
        # As a stream, in the order of the archive: going back would unpack it again.
        with tarfile.open(path, "r|gz") as archive:
            found = set()
            for member in archive:
                if member.name not in names:
                    continue
                file = archive.extractfile(member)
                if member.size != size or file is None:
                    raise DataError(
                        f"{path}: expected {member.name} to be a file of {size} bytes. Got: {member.size}"
                    )
                flat[names.index(member.name)] = np.frombuffer(file.read(size), np.uint8)
                found.add(member.name)
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        raise DataError(f"{path}: expected a tar archive compressed with gzip. Got: {error}") from error
    if missing := [name for name in names if name not in found]:
        raise DataError(f"{path}: expected {', '.join(missing)} in it, found nothing of that name")
    # Channel by channel, each row by row.
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Examples(np.ascontiguousarray(images), records[:, 0].copy())
