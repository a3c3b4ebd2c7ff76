"""Downloads of raw files, for the login node or a laptop: known SHA-256, several mirrors, short timeouts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpi_train.runtime.errors import DataError, UsageError

RETRIES = 2
"""Number of further tries of a file that a mirror delivered incomplete or altered."""

TIMEOUTS_S = (3.0, 20.0)
"""Timeouts of connecting, and of waiting for the next bytes."""


@dataclass(frozen=True)
class RemoteFile:
    """File to download: name below each mirror, size in bytes, SHA-256 in hex."""

    name: str
    num_bytes: int
    sha256: str


def fetch(files: Sequence[RemoteFile], mirrors: Sequence[str], folder: Path) -> None:
    """Download the files that the cache ``folder`` lacks. A file gets its name once its hash was checked.

    The ``mirrors`` are base URLs, the preferred one first, each ending in ``/``.

    Raises:
        DataError: No mirror delivered all files. Without a network this takes a few seconds.
        UsageError: ``folder`` is not writable.
    """
    wanted = {file.name: file for file in files if not (folder / file.name).exists()}
    if not wanted:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _fetch(wanted, mirrors, folder)
    except OSError as error:
        raise UsageError(
            f"expected a cache folder that can be written. Got: {folder} ({error.strerror})",
            remedy="export MPI_TRAIN_CACHE=DIR, with a writable folder",
        ) from error


def _fetch(wanted: dict[str, RemoteFile], mirrors: Sequence[str], folder: Path) -> None:
    import pooch
    import requests
    from rich.console import Console
    from rich.progress import Progress

    pooch.get_logger().setLevel(logging.WARNING)
    registry = {file.name: f"sha256:{file.sha256}" for file in wanted.values()}
    failures = []
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        tasks = {file.name: bar.add_task(file.name, total=file.num_bytes) for file in wanted.values()}

        def download(url: str, output: str, _: object) -> None:
            name = url.rpartition("/")[2]
            bar.reset(tasks[name])
            try:
                response = requests.get(url, stream=True, timeout=TIMEOUTS_S)
                response.raise_for_status()
                with open(output, "wb") as saved:
                    for block in response.iter_content(1 << 16):
                        saved.write(block)
                        bar.advance(tasks[name], len(block))
                        if saved.tell() > wanted[name].num_bytes:  # A mirror could send data without end.
                            raise ValueError(f"expected {wanted[name].num_bytes} bytes. Got: more")
            except (requests.ConnectionError, requests.Timeout) as error:
                # Pooch does not retry after a DataError, so the next mirror follows at once.
                raise DataError(f"no connection, or a stalled one ({type(error).__name__})") from error

        for mirror in mirrors:
            source = pooch.create(path=folder, base_url=mirror, registry=registry, retry_if_failed=RETRIES)
            try:
                for name in wanted:
                    source.fetch(name, downloader=download)
                return
            except (DataError, requests.RequestException, ValueError) as error:
                failures.append(f"\n    {mirror}{name}: {error}")
    raise DataError(f"expected all files from one of the mirrors. Got:{''.join(failures) or ' no mirrors'}")
