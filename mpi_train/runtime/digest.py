"""Digest of arrays, by which ranks and runs compare their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np


def digest(arrays: Iterable[np.ndarray]) -> str:
    """Return the SHA-256 over the bytes of ``arrays``, in hex."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
