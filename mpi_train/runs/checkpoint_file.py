"""One checkpoint on disk: arrays, and what must be known of them, in one file that is whole or refused.

    8 bytes    MPITRAIN
    8 bytes    length of the header, little-endian
    header     JSON: ``state``, and name, rank, dtype and shape of each array
    arrays     their bytes, one after another, little-endian
    32 bytes   SHA-256 of all before

Not HDF5, whose library cannot close a file on a full disk, and which has a parser to attack. Nothing
here is code, and no more memory is taken than the file has bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mpi_train.runtime.errors import DataError

MAGIC = b"MPITRAIN"
_DTYPES = {"<f2", "<f4", "<f8", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "|b1"}
_MAX_HEADER = 64 << 20


@dataclass(frozen=True)
class Entry:
    """An array in the file.

    Attributes:
        name: What it is.
        rank: Whose it is, or None where all ranks have the same.
        dtype: As NumPy writes it, little-endian: ``<f4``.
        shape: Its shape.
    """

    name: str
    rank: int | None
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, rank: int | None, array: np.ndarray) -> Entry:
        return cls(name, rank, array.dtype.newbyteorder("<").str, array.shape)

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def num_bytes(state: dict[str, Any], entries: Iterable[Entry]) -> int:
    """Size of the file that ``write`` makes of these."""
    listed = list(entries)
    return 16 + len(_header(state, listed)) + sum(entry.num_bytes for entry in listed) + 32


def write(path: Path, state: dict[str, Any], entries: list[Entry], arrays: Iterable[np.ndarray]) -> None:
    """Writes a checkpoint and syncs it; whoever calls renames it when that has come to an end.

    Args:
        path: A temporary name.
        state: What JSON can hold.
        entries: What is to come.
        arrays: One for each entry, in the same order; asked for one at a time.

    Raises:
        OSError: the disk. The arrays may then not all have been asked for.
    """
    header = _header(state, entries)
    digest = hashlib.sha256()
    with open(path, "wb") as file:

        def put(data: bytes | memoryview) -> None:
            digest.update(data)
            file.write(data)

        put(MAGIC + len(header).to_bytes(8, "little") + header)
        for entry, array in zip(entries, arrays, strict=True):
            own = np.ascontiguousarray(array, np.dtype(entry.dtype))
            put(own.reshape(-1).view(np.uint8).data)
        file.write(digest.digest())
        file.flush()
        os.fsync(file.fileno())


def _header(state: dict[str, Any], entries: Iterable[Entry]) -> bytes:
    listed = [[entry.name, entry.rank, entry.dtype, list(entry.shape)] for entry in entries]
    return json.dumps({"state": state, "arrays": listed}, allow_nan=False).encode()


class CheckpointFile:
    """A checkpoint that was found whole.

    Args:
        path: Of the file.

    Attributes:
        state: As it was written.
        entries: The arrays in it.

    Raises:
        DataError: it cannot be read, or is not what ``write`` wrote.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self._read_header(file)
        except OSError as error:
            raise self._bad(error.strerror or str(error)) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._bad(" ".join(str(error).split())) from error

    def read(self, name: str, rank: int | None = None) -> np.ndarray:
        """The array ``name``: that of ``rank``, or the one that all ranks have in common.

        Raises:
            DataError: there is none, or it can no longer be read.
        """
        for wanted in (rank, None):
            for entry, start in zip(self.entries, self._starts, strict=True):
                if (entry.name, entry.rank) == (name, wanted):
                    return self._array(entry, start)
        raise self._bad(f"no array {name}" + ("" if rank is None else f" of rank {rank}"))

    def _array(self, entry: Entry, start: int) -> np.ndarray:
        array = np.empty(math.prod(entry.shape), np.dtype(entry.dtype))
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                count = file.readinto(array.view(np.uint8).data)
        except OSError as error:
            raise self._bad(error.strerror or str(error)) from error
        if count != entry.num_bytes:
            raise self._bad(f"{count} of {entry.num_bytes} bytes of {entry.name}")
        try:
            return array.reshape(entry.shape)
        except ValueError as error:  # a length of 0 beside one that no array can have
            raise self._bad(str(error)) from error

    def _read_header(self, file: BinaryIO) -> None:
        size = os.fstat(file.fileno()).st_size
        begin = file.read(16)
        length = int.from_bytes(begin[8:], "little")
        if begin[:8] != MAGIC or length > min(size - 48, _MAX_HEADER):
            raise ValueError("another kind of file, or the beginning of one")
        digest = hashlib.sha256(begin)
        left = size - 48
        raw = file.read(length)
        digest.update(raw)
        left -= length
        while left > 0 and (block := file.read(min(1 << 20, left))):
            digest.update(block)
            left -= len(block)
        if file.read(33) != digest.digest():
            raise ValueError("bytes that do not match their SHA-256")
        header = json.loads(raw)
        self.state: dict[str, Any] = header["state"]
        self.entries = [_entry(*fields) for fields in header["arrays"]]
        sizes = [entry.num_bytes for entry in self.entries]
        self._starts = [16 + length + sum(sizes[:index]) for index in range(len(sizes))]
        if not isinstance(self.state, dict) or 16 + length + sum(sizes) + 32 != size:
            raise ValueError("arrays that do not fill the file")

    def _bad(self, received: str) -> DataError:
        return DataError(f"{self.path}: expected a whole checkpoint. Got: {received}")


def _entry(name: Any, rank: Any, dtype: Any, shape: Any) -> Entry:
    sound = (
        isinstance(name, str)
        and (rank is None or (type(rank) is int and rank >= 0))
        and dtype in _DTYPES
        and isinstance(shape, list)
        and all(type(length) is int and length >= 0 for length in shape)
    )
    if not sound:
        raise ValueError(f"an array described as {name!r}, {rank!r}, {dtype!r}, {shape!r}"[:200])
    return Entry(name, rank, dtype, tuple(shape))
