"""Settings that decide nothing but the speed, chosen by measuring in the first seconds of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

CLEARLY = 0.95
"""Of the time of what would be taken without measuring; what is not below that is not worth a change."""


def clearly_fastest(seconds: Mapping[T, float]) -> T:
    """The setting with the shortest time; the first, which is the usual one, where that gains little."""
    usual, best = next(iter(seconds)), min(seconds, key=lambda setting: seconds[setting])
    return best if seconds[best] < CLEARLY * seconds[usual] else usual
