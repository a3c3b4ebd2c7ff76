"""IDX, the file format of MNIST and its kin: a magic number, the sizes of the dimensions, the bytes.

Source: http://yann.lecun.com/exdb/mnist/, "the IDX file format". Files come compressed with gzip.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mpi_train.runtime.errors import DataError

# Third byte of the magic number: the type of an element.
_UINT8 = 0x08


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Reads a gzip-compressed IDX file of bytes.

    Args:
        path: The file, such as ``train-images-idx3-ubyte.gz``.
        shape: What the file must hold. Memory is taken after its header has agreed, so a forged
            header cannot ask for more.

    Returns:
        uint8 array of ``shape``.

    Raises:
        DataError: missing, not gzip, not IDX, of another shape, truncated, or with bytes left over.
    """
    try:
        with path.open("rb") as packed, gzip.GzipFile(fileobj=packed) as file:
            return _read(file, path, shape)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected an IDX file compressed with gzip. Got: {error}") from error


def _read(file: gzip.GzipFile | BinaryIO, path: Path, shape: tuple[int, ...]) -> np.ndarray:
    header = struct.Struct(f">4B{len(shape)}I")
    start = file.read(header.size)
    if len(start) < header.size:
        raise DataError(f"{path}: expected an IDX header of {header.size} bytes. Got: {len(start)}")
    *magic, num_dims = header.unpack(start)[:4]
    if magic != [0, 0, _UINT8] or num_dims != len(shape):
        expected = bytes([0, 0, _UINT8, len(shape)]).hex()
        raise DataError(f"{path}: expected the IDX magic number {expected}. Got: {start[:4].hex()}")
    received = header.unpack(start)[4:]
    if received != shape:
        raise DataError(f"{path}: expected an IDX array of shape {shape}. Got: {received}")
    # One byte more than there should be shows what is left over.
    content = file.read(math.prod(shape) + 1)
    if len(content) != math.prod(shape):
        size = f"{len(content)} bytes" if len(content) < math.prod(shape) else "more"
        raise DataError(f"{path}: expected {math.prod(shape)} bytes after the header. Got: {size}")
    return np.frombuffer(content, np.uint8).reshape(shape)
