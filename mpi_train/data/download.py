"""Fetching raw files over the network: known SHA-256, several mirrors, retries, quick to give up.

For the login node or a laptop. Training jobs never download.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpi_train.data.progress_bar import progress
from mpi_train.runtime.errors import DataError, UsageError

ROUNDS = 3
"""How often each mirror is tried for a file, unless it cannot be reached at all."""

PAUSE_S = 1.0
"""Between two rounds."""

_CONNECT_TIMEOUT_S = 3.0
_READ_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be fetched: its name below each mirror, its size in bytes, its SHA-256 in hex."""

    name: str
    num_bytes: int
    sha256: str


def fetch(files: Sequence[RemoteFile], mirrors: Sequence[str], folder: Path) -> None:
    """Downloads ``files`` into ``folder``; those already there are left alone.

    A file appears under its name only when it is whole and its hash is right.

    Args:
        files: What to fetch.
        mirrors: Base URLs, the best first, each ending in ``/``.
        folder: Made when it is missing.

    Raises:
        DataError: no mirror gave one of the files. Within seconds when there is no network.
        UsageError: ``folder`` cannot be written.
    """
    wanted = [file for file in files if not (folder / file.name).exists()]
    if not wanted:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with progress(f"downloading {len(wanted)} files", sum(f.num_bytes for f in wanted)) as advance:
            for file in wanted:
                _fetch_one(file, mirrors, folder, advance)
    except OSError as error:
        raise UsageError(
            f"expected a cache folder that can be written. Got: {folder} ({error.strerror})",
            remedy="export MPI_TRAIN_CACHE=DIR, with a folder of yours",
        ) from error


def _fetch_one(
    file: RemoteFile, mirrors: Sequence[str], folder: Path, advance: Callable[[int], None]
) -> None:
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    reachable = list(mirrors)
    failures: dict[str, str] = {}
    for attempt in range(ROUNDS):
        if attempt and reachable:
            time.sleep(PAUSE_S)
        for mirror in list(reachable):
            counter = _Counter(file, advance)
            downloader = pooch.HTTPDownloader(
                progressbar=counter, timeout=(_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S)
            )
            try:
                pooch.retrieve(
                    mirror + file.name, f"sha256:{file.sha256}", file.name, folder, downloader=downloader
                )
                return
            # Before the next: whoever cannot be reached now will not be in a second.
            except requests.ConnectionError as error:
                reachable.remove(mirror)
                failures[mirror] = f"cannot be reached ({type(error).__name__})"
            except (requests.RequestException, ValueError) as error:
                failures[mirror] = str(error)
            counter.reset()
    raise DataError(
        f"{file.name}: no mirror gave it. Got:\n"
        + "\n".join(f"    {mirror}: {failure}" for mirror, failure in failures.items())
    )


class _Counter:
    """What pooch takes for a progress bar; also stops a mirror that sends without end."""

    # Pooch counts whole blocks, so its count may exceed the file by less than one of them.
    _SLACK = 1 << 20

    def __init__(self, file: RemoteFile, advance: Callable[[int], None]) -> None:
        self.total = 0
        self._file = file
        self._advance = advance
        self._done = 0

    def update(self, amount: int) -> None:
        self._done += amount
        self._advance(amount)
        if self._done > self._file.num_bytes + self._SLACK:
            raise ValueError(f"expected {self._file.num_bytes} bytes, received more than {self._done}")

    def reset(self) -> None:
        self._advance(-self._done)
        self._done = 0

    def close(self) -> None:
        pass
