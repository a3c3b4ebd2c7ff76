"""Readers of raw files: IDX (MNIST, Fashion-MNIST) and the binary version of CIFAR-10.

Sources: http://yann.lecun.com/exdb/mnist/, "the IDX file format", and
https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version". The Python version of CIFAR-10 is a pickle, which
can execute code, and is not supported.
"""

from __future__ import annotations

import gzip
import math
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpi_train.data.examples import Examples
from mpi_train.runtime.errors import DataError

_UINT8 = 0x08
"""Third byte of the IDX magic number: the type of an element."""

_CIFAR_RECORD = 1 + 32 * 32 * 3
"""Bytes of an example in CIFAR-10: the label, then the red, the green and the blue rows."""


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a gzip-compressed IDX file of bytes.

    Args:
        path: File, such as ``train-images-idx3-ubyte.gz``.
        shape: Expected shape. Memory is allocated after the header was checked, so a forged header cannot
            request more.

    Returns:
        uint8 array of ``shape``.

    Raises:
        DataError: The file is missing, not gzip, not IDX, truncated, too long, or has another shape.
    """
    header = struct.Struct(f">4B{len(shape)}I")
    size = math.prod(shape)
    try:
        with gzip.open(path) as file:
            start = file.read(header.size)
            # One more byte than expected shows that the file is too long.
            content = file.read(size + 1) if start[4:] == header.pack(0, 0, 0, 0, *shape)[4:] else b""
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected an IDX file compressed with gzip. Got: {error}") from error
    if len(start) < header.size:
        raise DataError(f"{path}: expected an IDX header of {header.size} bytes. Got: {len(start)}")
    magic = bytes([0, 0, _UINT8, len(shape)])
    if start[:4] != magic:
        raise DataError(f"{path}: expected the IDX magic number {magic.hex()}. Got: {start[:4].hex()}")
    if (received := header.unpack(start)[4:]) != shape:
        raise DataError(f"{path}: expected an IDX array of shape {shape}. Got: {received}")
    if len(content) != size:
        length = f"{len(content)} bytes" if len(content) < size else "more"
        raise DataError(f"{path}: expected {size} bytes after the header. Got: {length}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_cifar10(path: Path, names: Sequence[str], num_examples: int) -> Examples:
    """Read members of the CIFAR-10 archive in the order of ``names``. Nothing is unpacked to disk.

    Args:
        path: Archive, ``cifar-10-binary.tar.gz``.
        names: Members, such as ``cifar-10-batches-bin/data_batch_1.bin``.
        num_examples: Expected number of examples in all members, the same number in each.

    Returns:
        Images uint8 (num_examples, 32, 32, 3), labels uint8 (num_examples,).

    Raises:
        DataError: The file is not such an archive, or a member is missing or has another size.
    """
    size = num_examples // len(names) * _CIFAR_RECORD
    found: dict[str, bytes] = {}
    try:
        # A stream is read in the order of the archive; random access would decompress it several times.
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                if member.name in names:
                    file = archive.extractfile(member)
                    if member.size != size or file is None:
                        raise DataError(
                            f"{path}: expected {member.name} to be a file of {size} bytes. Got: {member.size}"
                        )
                    found[member.name] = file.read(size)
        records = np.frombuffer(b"".join(found[name] for name in names), np.uint8).reshape(
            num_examples, _CIFAR_RECORD
        )
    except KeyError:
        missing = ", ".join(name for name in names if name not in found)
        raise DataError(f"{path}: expected {missing} in the archive. Got: no such member") from None
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        raise DataError(f"{path}: expected a tar archive compressed with gzip. Got: {error}") from error
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Examples(np.ascontiguousarray(images), records[:, 0].copy())
