"""Checkpoint files: arrays and a JSON state in the safetensors format, protected by a SHA-256 digest.

Any safetensors library can open the file. An array that all ranks share is stored as ``NAME``, an array of
rank 3 as ``rank3/NAME``. The state is JSON text in the metadata. The last tensor, ``sha256``, is the digest
of all bytes before its own 32, so that one file holds data and checksum.

The library reads the file but does not write it: its writer needs all arrays in memory at once, whereas
``write`` needs only their shapes in advance and takes the arrays one at a time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from mpi_train.runtime import files
from mpi_train.runtime.errors import DataError

DIGEST = "sha256"
_DIGEST_BYTES = 32
_OLD_MAGIC = b"MPITRAIN"
"""First bytes of the format that preceded safetensors."""
_ERRORS = (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""Errors of the disk, the library, JSON and NumPy at a file that is damaged."""


class Entry(NamedTuple):
    """Description of an array in a checkpoint file: ``rank`` owns the array; None if all ranks share it."""

    name: str
    rank: int | None
    dtype: str
    """Little-endian NumPy type, such as ``<f4``."""
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, rank: int | None, array: np.ndarray) -> Entry:
        return cls(name, rank, array.dtype.newbyteorder("<").str, array.shape)

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def write(path: Path, state: dict[str, Any], entries: Sequence[Entry], arrays: Iterable[np.ndarray]) -> None:
    """Write a checkpoint file, which gets its name when it is complete and synced to disk.

    Args:
        path: Path of the file.
        state: JSON object.
        entries: Descriptions of the arrays.
        arrays: Arrays in the order of ``entries``, taken one at a time.

    Raises:
        OSError: The disk refuses a write. Some of ``arrays`` may then not have been taken.
    """
    header = _header(state, entries)
    digest = hashlib.sha256(header)
    with files.replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(header)
        for entry, array in zip(entries, arrays, strict=True):
            block = np.ascontiguousarray(array, np.dtype(entry.dtype)).reshape(-1).view(np.uint8).data
            digest.update(block)
            file.write(block)
        file.write(digest.digest())


def _header(state: dict[str, Any], entries: Iterable[Entry]) -> bytes:
    """Compose the safetensors header: 8 bytes with its length, then JSON padded to a multiple of 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"state": json.dumps(state, allow_nan=False)}}
    end = 0
    for entry in [*entries, Entry(DIGEST, None, "|u1", (_DIGEST_BYTES,))]:
        begin, end = end, end + entry.num_bytes
        kind = "BOOL" if entry.dtype == "|b1" else f"{entry.dtype[1].upper()}{8 * int(entry.dtype[2:])}"
        key = entry.name if entry.rank is None else f"rank{entry.rank}/{entry.name}"
        header[key] = {"dtype": kind, "shape": entry.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class CheckpointFile:
    """Checkpoint file whose digest has been verified.

    Args:
        path: Path of the file.

    Attributes:
        state: JSON object that was given to ``write``.
        owners: Ranks that own an array, by the array's name; ``{None}`` if all ranks share it.

    Raises:
        DataError: The file cannot be read, is incomplete or damaged, or has an old format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owners: dict[str, set[int | None]] = {}
        with self._refusing():
            self._verify()
            with self._open() as file:
                self.state: dict[str, Any] = dict(json.loads(file.metadata()["state"]))
                keys = file.offset_keys()
            for key in keys:
                owner = re.match(r"rank(\d+)/", key)
                name = key[owner.end() :] if owner else key
                self.owners.setdefault(name, set()).add(int(owner[1]) if owner else None)
            del self.owners[DIGEST]

    def read(self, name: str, rank: int | None = None) -> np.ndarray:
        """Read the array ``name`` of ``rank``, or the one that all ranks share, and no other array.

        Raises:
            DataError: The file has no such array or can no longer be read.
        """
        with self._refusing(), self._open() as file:
            owners = self.owners.get(name, set())
            if not owners & {rank, None}:
                raise ValueError(f"no array {name}" + ("" if rank is None else f" of rank {rank}"))
            key = f"rank{rank}/{name}" if rank is not None and rank in owners else name
            return np.asarray(file.get_tensor(key))

    def _open(self) -> Any:
        # Reads instead of a memory map: a disk error in a mapped page would kill the process.
        return safe_open(self.path, framework="np", backend="pread")

    def _verify(self) -> None:
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            if file.read(len(_OLD_MAGIC)) == _OLD_MAGIC:
                raise DataError(
                    f"{self.path}: expected a checkpoint in the safetensors format. Got: an older format",
                    remedy="--resume never, or resume with the version of mpi_train that wrote it",
                )
            left = os.fstat(file.fileno()).st_size - _DIGEST_BYTES
            file.seek(0)
            while left > 0 and (block := file.read(min(1 << 20, left))):
                digest.update(block)
                left -= len(block)
            if file.read() != digest.digest():
                raise ValueError("bytes that do not match their SHA-256")

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn an error into a ``DataError``."""
        try:
            yield
        except _ERRORS as error:
            text = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())[:300]
            raise DataError(f"{self.path}: expected a whole checkpoint. Got: {text}") from error
