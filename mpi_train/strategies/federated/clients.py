"""Clients of federated learning: their data, the choice of clients for a round, and their training.

A client is a shard, whose examples never leave their rank; ``jobs/prepare_data.py`` decided their skew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpi_train.data.examples import Examples
from mpi_train.data.manifest import Manifest
from mpi_train.data.shards import balanced_range
from mpi_train.runs import coordinator
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.world import World
from mpi_train.strategies.federated.config import FederatedConfig
from mpi_train.strategies.federated.server import Server
from mpi_train.training.loop import Chunk, ChunkCallback, run_chunks
from mpi_train.training.steps import epoch_order, plan_steps
from mpi_train.training.totals import EpochTotals
from mpi_train.training.trainer import Trainer

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


class AskedError(Exception):
    """This rank was asked to stop while a client trained."""


class RankClients:
    """Clients of one rank.

    Args:
        trainer: Trainer whose examples are those of all these clients, one client after another.
        server: Server whose model each client starts from.
        clients, config: Clients of this rank, and options of the run.
    """

    def __init__(
        self, trainer: Trainer, server: Server, clients: list[Client], config: FederatedConfig
    ) -> None:
        self._trainer, self._server, self.clients, self._config = trainer, server, clients, config
        rate = trainer.update.optimizer.learning_rate
        self._slots = [v.value for v in trainer.update.optimizer.variables if v is not rate]
        self._initial = [np.array(slot.numpy()) for slot in self._slots]

    def warm_up(self) -> None:
        """Build the graphs, for any number of examples."""
        for client in (self.clients[0], self.clients[-1]):
            for count in (client.num_examples, max(1, client.num_examples // 2)):
                steps = plan_steps(count, self._config.batch_size)
                self._trainer.warm_up(np.zeros(count, np.int32), steps)

    def train(self, client: Client, round_number: int) -> tuple[EpochTotals, bool]:
        """Run the local epochs of a client, from the server's model on.

        The optimizer starts anew, because a client may take part in one round only.

        Returns:
            Totals, and True if all values stayed finite.

        Raises:
            AskedError: this rank was asked to stop.
        """
        self._server.load_server_weights()
        for slot, value in zip(self._slots, self._initial, strict=True):
            slot.assign(value)
        config, trainer = self._config, self._trainer
        steps = plan_steps(client.num_examples, config.batch_size)
        totals, finite = EpochTotals(), _FiniteCheck()
        for local in range(config.local_epochs):
            epoch = (round_number - 1) * config.local_epochs + local + 1
            order = epoch_order(config.seed, epoch, client.number, client.num_examples)
            run_steps = trainer.prepare(order + np.int32(client.start - self.clients[0].start), steps)
            totals += run_chunks(
                run_steps, len(steps), World(), finite, weights=lambda: [trainer.flat.weights.numpy()]
            )
        return totals, finite.so_far

    def examples_of(self, client: Client) -> Examples:
        """Return the examples of one client."""
        own, offset = self._trainer.examples, self.clients[0].start
        part = slice(client.start - offset, client.stop - offset)
        return Examples(own.images[part], own.labels[part])


class _FiniteCheck(ChunkCallback):
    """Callback that checks the chunks of one client; other ranks learn of it after the client's training."""

    def __init__(self) -> None:
        self.so_far = True

    def after(self, chunk: Chunk, world: World) -> tuple[float, bool]:
        """Remember if the chunk was finite; pause if this rank was asked to stop."""
        self.so_far &= chunk.finite
        return chunk.elapsed_s, coordinator.is_asked()

    def pause(self, step: int, so_far: EpochTotals) -> None:
        """End the training of the client."""
        raise AskedError
