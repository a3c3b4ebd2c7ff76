"""Federated learning: clients train on their own data, a server averages their models, round after round.

FedAvg (McMahan et al. 2017, arXiv:1602.05629): the clients of a round start from the server's model and train
for some epochs. The new model is the mean of theirs, weighted by their examples. With ``--proximal`` the loss
of a client holds it near the server's model: FedProx (Li et al. 2020, arXiv:1812.06127). With
``--server-momentum`` the server's step has momentum: FedAvgM (Hsu et al. 2019, arXiv:1909.06335). A rank
trains its clients one after another. The server is an all-reduce, so that every rank has its model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpi_train.collectives.averaging import NoAveraging
from mpi_train.models import zoo
from mpi_train.models.flat import FlatModel, digest_of
from mpi_train.monitor import timeline
from mpi_train.runs import epochs
from mpi_train.runs.loggers import Logger
from mpi_train.runs.record import EpochRecord, RunRecord
from mpi_train.runs.resumable import ResumableRun
from mpi_train.runs.run import Run
from mpi_train.runtime import devices, files, watchdog
from mpi_train.runtime.world import World
from mpi_train.strategies.custom_loop import build
from mpi_train.strategies.federated import chart
from mpi_train.strategies.federated.clients import AskedError, Client, RankClients, choose, clients_of
from mpi_train.strategies.federated.config import FederatedConfig
from mpi_train.strategies.federated.server import Proximal, Server
from mpi_train.training.evaluation import Evaluator
from mpi_train.training.loop import Chunk
from mpi_train.training.replicas import check_equal, offset_seeds_by_rank, start_equal
from mpi_train.training.totals import EpochTotals, RankTimes
from mpi_train.training.trainer import Trainer

ROUNDS, CLIENTS, PICTURE = "rounds.jsonl", "clients.json", "clients.png"


def train(config: FederatedConfig, world: World, threads: int) -> RunRecord:
    """Train the clients of all ranks; write the record, the log of the rounds and a chart."""
    run = Run("federated", config, world, threads)
    with world.together():
        device = devices.own_device(world)
        clients = clients_of(run.shards.manifest, world.size)
    mine = [client for client in clients if client.rank == world.rank]
    with world.together():
        examples = run.shards.read_range("train", mine[0].start, mine[-1].stop)
    test_examples = run.read("test")
    with world.together():
        model, optimizer = build(run)
    flat = FlatModel(model, device)
    proximal = Proximal(flat, config.proximal) if config.proximal else NoAveraging()
    trainer = Trainer(flat, optimizer, examples, averaging=proximal, devices=[device])
    evaluator = Evaluator(flat.predict, test_examples, from_logits=not zoo.returns_probabilities(model))
    start_equal(world, trainer.variables)
    offset_seeds_by_rank(world, flat.states)
    run.lap("build")
    server = Server(trainer, world, config.server_momentum)
    own_clients = RankClients(trainer, server, mine, config)
    own_clients.warm_up()
    evaluator.trace()
    log = _RoundsLog(run.out / ROUNDS, run.progress.warn)
    if world.is_root:
        run.loggers.append(log)

    def train_round(resumable: ResumableRun) -> None:
        totals, log.reports = _train_round(resumable, own_clients, server, clients, config)
        check_equal(world, server.model, when=f"after round {resumable.position.epoch}")
        count = sum(report.examples for report in log.reports) * config.local_epochs
        resumable.end_epoch(totals, evaluator.evaluate, expected=count)

    names = ("fraction", "local_epochs", "proximal", "server_momentum")
    options = {name: getattr(config, name) for name in names}
    return epochs.train_epochs(
        run,
        server,
        train_round,
        model=(model.name, model.count_params()),
        optimizer=optimizer,
        sync={"average": "clients", "clients": len(clients), **options},
        weights_sha256=lambda: digest_of(flat.export()),
        details=lambda: _describe(run, own_clients, evaluator),
        save_at_start=True,  # a round has no checkpoint within it
    )


@dataclass(frozen=True)
class ClientReport:
    """Report of a client to the server about its training in a round, with means over its local steps."""

    client: int
    rank: int
    examples: int
    train_loss: float
    train_accuracy: float
    train_s: float


def _train_round(
    resumable: ResumableRun,
    own_clients: RankClients,
    server: Server,
    clients: list[Client],
    config: FederatedConfig,
) -> tuple[EpochTotals, list[ClientReport]]:
    """Train one round, on all ranks together."""
    world, number = resumable.run.world, resumable.position.epoch
    chosen = [clients[i] for i in choose(len(clients), config.fraction, config.seed, number)]
    mine = [client for client in chosen if client.rank == world.rank]
    num_turns = max(sum(client.rank == rank for client in chosen) for rank in range(world.size))
    num_examples = sum(client.num_examples for client in chosen)
    resumable.begin_epoch(num_turns)
    server.begin_round()
    world.barrier()
    begin = time.perf_counter()
    compute_s = waiting_s = 0.0
    reports: list[ClientReport] = []
    with timeline.phase("host"):
        for turn in range(num_turns):
            start = time.perf_counter()
            loss, finite, count = 0.0, True, 0
            for client in mine[turn : turn + 1]:
                watchdog.note(f"round {number}, training of client {client.number}")
                # A rank that was asked to stop ends the training of its client: the round is repeated anyway.
                with suppress(AskedError):
                    with timeline.phase("compute"):
                        totals, finite = own_clients.train(client, number)
                        server.accumulate(client.num_examples / num_examples)
                    loss, count = totals.mean_loss, totals.count
                    report = (client.number, world.rank, client.num_examples)
                    reports.append(ClientReport(*report, loss, totals.accuracy, totals.train_s))
            trained = time.perf_counter()
            compute_s += trained - start
            # There is no exchange within a turn: ranks meet after it, and wait for the slowest client.
            with timeline.phase("wait"):
                resumable.after(Chunk(turn, turn + 1, trained - start, loss, finite, count, 0.0), world)
                missing = min(turn + 1, len(mine)) - len(reports)
                if resumable.coordinator.stopping and (turn + 1 < num_turns or world.maximum(missing)):
                    resumable.leave()
            waiting_s += time.perf_counter() - trained
        start = time.perf_counter()
        sent_bytes = server.end_round()
        reduce_s = time.perf_counter() - start
    train_s = time.perf_counter() - begin
    everyone = world.gather_all((train_s, compute_s, waiting_s, reduce_s, reports))
    moving_s = min(rank[3] for rank in everyone)
    all_reports = sorted((one for rank in everyone for one in rank[4]), key=lambda one: one.client)
    counted = [(one, one.examples * config.local_epochs) for one in all_reports]
    return EpochTotals(
        loss=sum(one.train_loss * count for one, count in counted),
        correct=sum(one.train_accuracy * count for one, count in counted),
        count=sum(count for _, count in counted),
        train_s=max(rank[0] for rank in everyone),
        by_rank=[
            RankTimes(
                compute, moving_s, waiting + reduce - moving_s, total - compute - waiting - reduce, sent_bytes
            )
            for total, compute, waiting, reduce, _ in everyone
        ],
    ), all_reports


class _RoundsLog(Logger):
    """Logger of ``rounds.jsonl``: one line a round, with the reports of its clients."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.name = str(path)
        self._path, self._warn = path, warn
        self._lines: list[str] = []
        self.reports: list[ClientReport] = []

    def start(self, info: dict[str, Any], epochs: Sequence[EpochRecord]) -> None:
        """Read the rounds of the interrupted run."""
        if epochs and self._path.exists():
            self._lines = self._path.read_text(encoding="utf-8").splitlines()
        self.rewind(epochs)

    def rewind(self, epochs: Sequence[EpochRecord]) -> None:
        """Keep these rounds only."""
        self._lines = [line for line in self._lines if json.loads(line)["round"] <= len(epochs)]

    def epoch(self, record: EpochRecord) -> None:
        """Add a round, whose ``reports`` are known, and write the file."""
        line = {"round": record.epoch, "test_loss": record.test_loss, "test_accuracy": record.test_accuracy}
        self._lines.append(json.dumps({**line, "clients": [asdict(report) for report in self.reports]}))
        try:
            files.write_text(self._path, "\n".join(self._lines) + "\n")
        except OSError as error:  # the next round writes all lines again
            self._warn(f"{self._path}: {error.strerror}; not written")


def _describe(run: Run, own_clients: RankClients, evaluator: Evaluator) -> dict[str, Any]:
    """Write each client's data and the final model's accuracy on it as JSON and as a chart; return {}."""
    mine = []
    for client in own_clients.clients:
        own = own_clients.examples_of(client)
        classes = np.bincount(own.labels, minlength=run.num_classes).tolist()
        accuracy = evaluator.accuracy_on(own)
        mine.append({"client": client.number, "rank": client.rank, "classes": classes, "accuracy": accuracy})
    described = [one for rank in run.world.gather_all(mine) for one in rank]
    if run.world.is_root:
        class_names, test_accuracy = run.shards.manifest.class_names, run.epochs[-1].test_accuracy
        try:
            files.write_json(run.out / CLIENTS, described)
            chart.draw(described, class_names, test_accuracy, run.out / PICTURE)
        except OSError as error:
            run.progress.warn(f"{run.out / CLIENTS} and {PICTURE}: {error.strerror}; not written")
    return {}
