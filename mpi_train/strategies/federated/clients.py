"""The clients of federated learning: whose data is whose, and who takes part in a round.

A client is a shard: how the data is skewed was settled when it was cut, by ``jobs/prepare_data.py``. Each
rank keeps the shards of some clients, and their examples never leave it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpi_train.data.manifest import Manifest
from mpi_train.data.shards import balanced_range
from mpi_train.runtime.errors import UsageError

_STREAM = 0xFED
"""Keeps the choice of clients apart from what else is drawn from the same seed."""


@dataclass(frozen=True)
class Client:
    """A holder of data.

    Attributes:
        number: From 0, that of its shard.
        rank: Where its data is.
        start, stop: Its examples among those of the training split, shards laid end to end.
    """

    number: int
    rank: int
    start: int
    stop: int

    @property
    def num_examples(self) -> int:
        return self.stop - self.start


def clients_of(manifest: Manifest, num_ranks: int) -> list[Client]:
    """One client for each training shard, dealt out to the ranks in runs of equal length.

    Raises:
        UsageError: fewer clients than ranks.
    """
    files = manifest.splits["train"].files
    if len(files) < num_ranks:
        raise UsageError(
            f"expected a client, which is a shard, for each of the {num_ranks} ranks. "
            f"Got: {len(files)} shards",
            remedy=f"fewer ranks, or python jobs/prepare_data.py --shards {num_ranks} (and --partition)",
        )
    ends = np.cumsum([file.num_examples for file in files]).tolist()
    rank_of = [rank for rank in range(num_ranks) for _ in range(*balanced_range(len(files), num_ranks, rank))]
    return [
        Client(number, rank_of[number], end - file.num_examples, end)
        for number, (file, end) in enumerate(zip(files, ends, strict=True))
    ]


def choose(num_clients: int, fraction: float, seed: int, round_number: int) -> list[int]:
    """The clients of a round, ascending: at least one, and the same on every rank."""
    count = max(1, round(fraction * num_clients))
    rng = np.random.default_rng([seed, _STREAM, round_number])
    return sorted(rng.choice(num_clients, size=count, replace=False).tolist())
