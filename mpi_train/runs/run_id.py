"""Run ids, which sort by time and are valid in file names and URLs.

    20261121T110222Z-mpi-4x-cnn-fashion_mnist-s1-3f9a

An id holds start (UTC), strategy, ranks, model, data set and seed, and four random digits, because two runs
may start within a second.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timezone

_STAMP = "%Y%m%dT%H%M%SZ"
_PATTERN = re.compile(r"\d{8}T\d{6}Z-[\w.-]+", re.ASCII)
_LONGEST_PART = 40


def new(started_s: float, parts: Sequence[str]) -> str:
    """Make a unique run id.

    Args:
        started_s: Start of the run, in seconds since 1970.
        parts: Descriptions of the run; characters that a file name cannot have are replaced.
    """
    stamp = datetime.fromtimestamp(started_s, timezone.utc).strftime(_STAMP)
    safe = (re.sub(r"[^A-Za-z0-9_.]+", "-", part)[:_LONGEST_PART] for part in parts)
    return "-".join([stamp, *safe, secrets.token_hex(2)])


def started(run_id: str) -> str:
    """Return the start of a run, in UTC and ISO 8601: ``2026-11-21T11:02:22Z``."""
    return datetime.strptime(run_id.split("-")[0], _STAMP).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_one(text: object) -> bool:
    """Return True if ``text`` is a run id, and therefore safe as the name of a folder."""
    return isinstance(text, str) and _PATTERN.fullmatch(text) is not None
