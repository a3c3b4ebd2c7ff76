"""Readers of raw files: IDX (MNIST, Fashion-MNIST) and the binary version of CIFAR-10.

Sources: http://yann.lecun.com/exdb/mnist/, "the IDX file format", and
https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version". The Python version of CIFAR-10 is a pickle,
which can execute code, and is not supported.
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
from mpi_train.runtime.errors import DataError, expect

_UINT8 = 0x08
"""Third byte of the IDX magic number: the type of an element."""

_CIFAR_RECORD = 1 + 32 * 32 * 3
"""Bytes of an example in CIFAR-10: the label, then the red, the green and the blue rows."""


def read_mnist(paths: Sequence[Path], num_train: int, num_test: int) -> tuple[Examples, Examples]:
    """Read training images and labels, then test images and labels, of 28 x 28 pixels; see ``read_idx``."""
    train_images, train_labels, test_images, test_labels = paths
    train = read_idx(train_images, (num_train, 28, 28)), read_idx(train_labels, (num_train,))
    test = read_idx(test_images, (num_test, 28, 28)), read_idx(test_labels, (num_test,))
    return Examples(*train), Examples(*test)


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a gzip-compressed IDX file of bytes into a uint8 array of ``shape``.

    Memory is allocated after the header was checked, so a forged header cannot request more.

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
    expect(len(start) == header.size, path, f"an IDX header of {header.size} bytes", len(start))
    magic = bytes([0, 0, _UINT8, len(shape)])
    expect(start[:4] == magic, path, f"the IDX magic number {magic.hex()}", start[:4].hex())
    received = header.unpack(start)[4:]
    expect(received == shape, path, f"an IDX array of shape {shape}", received)
    length = f"{len(content)} bytes" if len(content) < size else "more"
    expect(len(content) == size, path, f"{size} bytes after the header", length)
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_cifar10(paths: Sequence[Path], num_train: int, num_test: int) -> tuple[Examples, Examples]:
    """Read the archive ``cifar-10-binary.tar.gz``. Nothing is unpacked to disk.

    Raises:
        DataError: The file is not such an archive, or a member is missing or has another size.
    """
    (path,) = paths
    sizes = {f"cifar-10-batches-bin/data_batch_{number}.bin": num_train // 5 for number in range(1, 6)}
    sizes["cifar-10-batches-bin/test_batch.bin"] = num_test
    found: dict[str, bytes] = {}
    try:
        # A stream is read in the order of the archive; random access would decompress it several times.
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                size = sizes.get(member.name, 0) * _CIFAR_RECORD
                if size:
                    file = archive.extractfile(member)
                    content = b"" if file is None else file.read(size)
                    sound = len(content) == member.size == size
                    expect(sound, path, f"{member.name} to be a file of {size} bytes", member.size)
                    found[member.name] = content
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        raise DataError(f"{path}: expected a tar archive compressed with gzip. Got: {error}") from error
    missing = [name for name in sizes if name not in found]
    expect(not missing, path, f"{', '.join(missing)} in the archive", "no such member")
    records = np.frombuffer(b"".join(found[name] for name in sizes), np.uint8).reshape(-1, _CIFAR_RECORD)
    images = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    labels = records[:, 0].copy()
    return Examples(images[:num_train], labels[:num_train]), Examples(images[num_train:], labels[num_train:])
