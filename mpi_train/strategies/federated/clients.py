"""Clients of federated learning: their data, and the choice of clients for a round.

A client is a shard, whose examples never leave their rank; ``jobs/prepare_data.py`` decided their skew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpi_train.data.manifest import Manifest
from mpi_train.data.shards import balanced_range
from mpi_train.runtime.errors import UsageError

_STREAM = 0xFED
"""Random stream of the choice of clients, apart from other streams of the same seed."""


@dataclass(frozen=True)
class Client:
    """A client.

    Attributes:
        number: Number of its shard, from 0.
        rank: Rank that holds its data.
        start, stop: Range of its examples in the training split, all shards in a row.
    """

    number: int
    rank: int
    start: int
    stop: int

    @property
    def num_examples(self) -> int:
        return self.stop - self.start


def clients_of(manifest: Manifest, num_ranks: int) -> list[Client]:
    """Return one client for each training shard; neighbouring clients share a rank, evenly.

    Raises:
        UsageError: there are fewer clients than ranks.
    """
    files = manifest.splits["train"].files
    if len(files) < num_ranks:
        raise UsageError(
            f"expected at least one shard (a client) for each of the {num_ranks} ranks. "
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
    """Draw the clients of a round, ascending: at least one, and the same on every rank."""
    count = max(1, round(fraction * num_clients))
    rng = np.random.default_rng([seed, _STREAM, round_number])
    return sorted(rng.choice(num_clients, size=count, replace=False).tolist())
