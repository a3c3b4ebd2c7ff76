"""The name of a run: sorts by time, says what it is, and can stand in file names and addresses.

    20261121T110222Z-mpi-4x-cnn-fashion_mnist-s1-3f9a

Start (UTC), strategy, ranks, model, data set, seed; and four digits by chance, as two runs may start within
a second.
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
    """A name that no other run has.

    Args:
        started_s: When it was started, in seconds since the epoch.
        parts: What it is; a model of the user's own may have any characters.
    """
    stamp = datetime.fromtimestamp(started_s, timezone.utc).strftime(_STAMP)
    safe = (re.sub(r"[^A-Za-z0-9_.]+", "-", part)[:_LONGEST_PART] for part in parts)
    return "-".join([stamp, *safe, secrets.token_hex(2)])


def started(run_id: str) -> str:
    """When a run was started, in UTC as ISO 8601 has it: ``2026-11-21T11:02:22Z``."""
    return datetime.strptime(run_id.split("-")[0], _STAMP).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_one(text: object) -> bool:
    """Whether ``text`` is the name of a run, so that a folder can be called so."""
    return isinstance(text, str) and _PATTERN.fullmatch(text) is not None
