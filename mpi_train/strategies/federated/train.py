"""Federated learning: clients train on their own data, a server averages their models, round after round.

FedAvg (McMahan et al. 2017, arXiv:1602.05629): the clients of a round start from the server's model and
train for some epochs; the new model is the mean of theirs, weighted by their examples. With ``--proximal`` a
client's loss holds it near the server's model: FedProx (Li et al. 2020, arXiv:1812.06127). With
``--server-momentum`` the server's step has momentum: FedAvgM (Hsu et al. 2019, arXiv:1909.06335). A rank
trains its clients one after another; the server is the all-reduce, so that every rank has its model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import Nothing
from mpi_train.collectives.base import all_reduce_bytes
from mpi_train.data.examples import Examples
from mpi_train.models import optimizers, zoo
from mpi_train.models.flat import FlatModel, digest_of
from mpi_train.monitor import timeline
from mpi_train.runs import coordinator, epochs
from mpi_train.runs.checkpoints import Arrays
from mpi_train.runs.loggers import About
from mpi_train.runs.record import EpochRecord, RunRecord
from mpi_train.runs.resumable import ResumableRun, copies
from mpi_train.runs.run import Run
from mpi_train.runtime import devices, files, watchdog
from mpi_train.runtime.world import World
from mpi_train.strategies.federated import chart
from mpi_train.strategies.federated.clients import Client, choose, clients_of
from mpi_train.strategies.federated.config import FederatedConfig
from mpi_train.training.evaluation import Evaluator
from mpi_train.training.loop import Chunk, ChunkCallback, run_chunks
from mpi_train.training.replicas import check_equal, offset_seeds_by_rank, start_equal
from mpi_train.training.steps import epoch_order, plan_steps
from mpi_train.training.totals import EpochTotals, RankTimes
from mpi_train.training.trainer import Trainer

ROUNDS, CLIENTS, PICTURE = "rounds.jsonl", "clients.json", "clients.png"


def train(config: FederatedConfig, world: World, threads: int) -> RunRecord:
    """Trains the clients of all ranks and writes the record, the log of the rounds and the picture."""
    run = Run("federated", config, world, threads)
    with world.together():
        device = devices.own_device(world)
        clients = clients_of(run.shards.manifest, world.size)
    mine = [client for client in clients if client.rank == world.rank]
    with world.together():
        examples = run.shards.read_range("train", mine[0].start, mine[-1].stop)
    test_examples = run.read("test")
    with world.together():
        model = zoo.build(
            config.model, run.input_shape, run.num_classes, seed=config.seed, dtype=config.dtype
        )
        optimizer = optimizers.build(config.optimizer, config.learning_rate)
    flat = FlatModel(model, device)
    proximal = _Proximal(flat, config.proximal) if config.proximal else Nothing()
    trainer = Trainer(flat, optimizer, examples, averaging=proximal, devices=[device])
    evaluator = Evaluator(flat.predict, test_examples, from_logits=not zoo.returns_probabilities(model))
    start_equal(world, trainer.variables)
    offset_seeds_by_rank(world, flat.states)
    run.lap("build")
    server = _Server(trainer, world, config.server_momentum)
    site = _RankClients(trainer, server, mine, config)
    site.warm_up()
    evaluator.trace()
    log = _RoundsLog(run.out / ROUNDS)
    if world.is_root:
        run.sinks.add(log)

    def train_round(resumable: ResumableRun) -> None:
        number = resumable.position.epoch
        totals, log.reports = _train_round(resumable, site, server, clients, config)
        check_equal(world, server.model(), when=f"after round {number}")
        count = sum(report.examples for report in log.reports) * config.local_epochs
        resumable.end_epoch(totals, evaluator.evaluate, expected=count)

    def details() -> dict[str, Any]:
        _describe(run, site, evaluator)
        return {}

    return epochs.train_epochs(
        run,
        server,
        train_round,
        model=(model.name, model.count_params()),
        optimizer=optimizer,
        save_at_start=True,  # there is no checkpoint within a round
        details=details,
        sync={
            "average": "clients",
            "clients": len(clients),
            "fraction": config.fraction,
            "local_epochs": config.local_epochs,
            "proximal": config.proximal,
            "server_momentum": config.server_momentum,
        },
        weights_sha256=lambda: digest_of(flat.export()),
    )


@dataclass(frozen=True)
class ClientReport:
    """What a client tells the server beside its model.

    Attributes:
        client, rank, examples: Who it is, where, and how much data it has.
        train_loss, train_accuracy: Mean over its local steps, taken while training.
        train_s: What they took.
    """

    client: int
    rank: int
    examples: int
    train_loss: float
    train_accuracy: float
    train_s: float


def _train_round(
    resumable: ResumableRun,
    site: _RankClients,
    server: _Server,
    clients: list[Client],
    config: FederatedConfig,
) -> tuple[EpochTotals, list[ClientReport]]:
    """One round, on all ranks together. There is no checkpoint within one."""
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
            if turn < len(mine):
                client = mine[turn]
                watchdog.note(f"round {number}, training of client {client.number}")
                # Asked to stop, a rank does not train its client to the end: the round begins anew anyway.
                with suppress(_AskedError):
                    with timeline.phase("compute"):
                        totals, finite = site.train(client, number)
                        server.accumulate(client.num_examples / num_examples)
                    loss, count = totals.mean_loss, totals.count
                    reports.append(
                        ClientReport(
                            client.number,
                            world.rank,
                            client.num_examples,
                            loss,
                            totals.accuracy,
                            totals.train_s,
                        )
                    )
            trained = time.perf_counter()
            compute_s += trained - start
            # No exchange is within: ranks meet when their clients have trained, and wait for the last.
            with timeline.phase("wait"):
                resumable.after(Chunk(turn, turn + 1, trained - start, loss, finite, count, 0.0), world)
                missing = min(turn + 1, len(mine)) - len(reports)
                if resumable.coordinator.stopping and (turn + 1 < num_turns or world.maximum(missing)):
                    resumable.abandon()
            waiting_s += time.perf_counter() - trained
        start = time.perf_counter()
        sent_bytes = server.end_round()
        reduce_s = time.perf_counter() - start
    train_s = time.perf_counter() - begin
    everyone = world.gather_all((train_s, compute_s, waiting_s, reduce_s, reports))
    moving_s = min(rank[3] for rank in everyone)
    all_reports = sorted((one for rank in everyone for one in rank[4]), key=lambda one: one.client)
    counts = [one.examples * config.local_epochs for one in all_reports]
    return EpochTotals(
        loss=sum(one.train_loss * count for one, count in zip(all_reports, counts, strict=True)),
        correct=sum(one.train_accuracy * count for one, count in zip(all_reports, counts, strict=True)),
        count=sum(counts),
        train_s=max(rank[0] for rank in everyone),
        by_rank=[
            RankTimes(
                compute_s=compute,
                moving_s=moving_s,
                waiting_s=waiting + reduce - moving_s,
                host_s=total - compute - waiting - reduce,
                sent_bytes=sent_bytes,
            )
            for total, compute, waiting, reduce, _ in everyone
        ],
    ), all_reports


class _RankClients:
    """The clients of one rank.

    Args:
        trainer: Its examples are those of all clients here, end to end.
        server: Whose model each client starts from.
        clients: Those here.
        config: Local epochs, batch size, seed.
    """

    def __init__(
        self, trainer: Trainer, server: _Server, clients: list[Client], config: FederatedConfig
    ) -> None:
        self._trainer, self._server, self._config = trainer, server, config
        self.clients = clients
        self._offset = clients[0].start
        rate = trainer.update.optimizer.learning_rate
        self._slots = [v.value for v in trainer.update.optimizer.variables if v is not rate]
        self._fresh = [np.array(slot.numpy()) for slot in self._slots]

    def warm_up(self) -> None:
        """Builds the graphs, for any number of examples."""
        for client in (self.clients[0], self.clients[-1]):
            for count in (client.num_examples, max(1, client.num_examples // 2)):
                steps = plan_steps(count, self._config.batch_size)
                self._trainer.warm_up(np.zeros(count, np.int32), steps)

    def train(self, client: Client, round_number: int) -> tuple[EpochTotals, bool]:
        """The local epochs of a client, from the server's model on; and whether all stayed finite.

        No optimizer state is kept: a client may take part once and never again.
        """
        self._server.load_server_weights()
        for slot, value in zip(self._slots, self._fresh, strict=True):
            slot.assign(value)
        config = self._config
        steps = plan_steps(client.num_examples, config.batch_size)
        totals, finite = EpochTotals(), _Finite()
        for local in range(config.local_epochs):
            epoch = (round_number - 1) * config.local_epochs + local + 1
            order = epoch_order(config.seed, epoch, client.number, client.num_examples)
            totals += run_chunks(
                self._trainer.prepare(order + np.int32(client.start - self._offset), steps),
                len(steps),
                World(),
                finite,
                weights=lambda: [self._trainer.flat.weights.numpy()],
            )
        return totals, finite.so_far

    def examples_of(self, client: Client) -> Examples:
        own = self._trainer.examples
        part = slice(client.start - self._offset, client.stop - self._offset)
        return Examples(own.images[part], own.labels[part])


class _AskedError(Exception):
    """This rank was asked to stop while a client trained."""


class _Finite(ChunkCallback):
    """Looks at the chunks of one client; other ranks learn of it when the client has trained."""

    def __init__(self) -> None:
        self.so_far = True

    def after(self, chunk: Chunk, world: World) -> tuple[float, bool]:
        """Remember whether the chunk was finite, and pause if this rank was asked to stop."""
        self.so_far &= chunk.finite
        return chunk.elapsed_s, coordinator.is_asked()

    def pause(self, step: int, so_far: EpochTotals) -> None:
        raise _AskedError


class _Proximal(Nothing):
    """Adds the gradient of ``strength / 2 * |weights - server's|^2`` to each step of a client."""

    def __init__(self, flat: FlatModel, strength: float) -> None:
        self._weights, self._strength = flat.weights, strength
        self.anchor = tf.Variable(flat.weights.value, trainable=False)

    def gradient(self, gradient: tf.Tensor) -> tf.Tensor:
        return gradient + self._strength * (self._weights.value.read_value() - self.anchor.read_value())


class _Server:
    """The model that the rounds improve, the same on every rank.

    Args:
        trainer: Holds the model that clients train.
        world: The ranks.
        momentum: Of the server's step; 0 for plain averaging.
    """

    def __init__(self, trainer: Trainer, world: World, momentum: float) -> None:
        self._trainer, self._world, self._momentum = trainer, world, momentum
        self._sum = timeline.traced("all-reduce", world.sum, together=world)
        flat = trainer.flat
        self._trained: list[tf.Variable] = [flat.weights.value, *flat.moving_statistics]
        self._model = [np.array(variable.numpy()) for variable in self._trained]
        self._velocity = np.zeros_like(self._model[0])

    def model(self) -> list[np.ndarray]:
        """The flat weights and BatchNorm's statistics."""
        return self._model

    def load_server_weights(self) -> None:
        """Puts the model into the trainer."""
        for variable, value in zip(self._trained, self._model, strict=True):
            variable.assign(value)
        if isinstance(self._trainer.averaging, _Proximal):
            self._trainer.averaging.anchor.assign(self._model[0])

    def begin_round(self) -> None:
        self._sums = [np.zeros_like(value) for value in self._model]

    def accumulate(self, share: float) -> None:
        """Adds what the trainer holds to the mean, with this weight."""
        for total, variable in zip(self._sums, self._trained, strict=True):
            total += np.float32(share) * variable.numpy()

    def end_round(self) -> int:
        """Replaces the model by the mean of all ranks' clients; on all ranks together.

        Returns:
            Bytes that each rank sent.
        """
        weights, *statistics = (self._sum(total) for total in self._sums)
        self._velocity = self._momentum * self._velocity + (self._model[0] - weights)
        self._model = (
            [self._model[0] - self._velocity, *statistics] if self._momentum else [weights, *statistics]
        )
        self.load_server_weights()
        return sum(all_reduce_bytes(array.nbytes, self._world.size) for array in self._model)

    # ---- As the session wants it --------------------------------------------------------------------------

    def arrays(self) -> Arrays:
        """The model, the velocity, the rate, and this rank's seeds of dropout."""
        rate = self._trainer.update.optimizer.learning_rate
        return {
            **{f"model/{i}": np.array(value) for i, value in enumerate(self._model)},
            "velocity": np.array(self._velocity),
            **copies({"learning_rate": rate}),
            **copies({f"states/{i}": state for i, state in enumerate(self._trainer.flat.states)}),
        }

    def restore(self, arrays: Arrays, *, same_size: bool) -> None:
        self._model = [np.array(arrays[f"model/{i}"]) for i in range(len(self._model))]
        self._velocity = np.array(arrays["velocity"])
        self._trainer.update.optimizer.learning_rate.assign(arrays["learning_rate"])
        for i, state in enumerate(self._trainer.flat.states):
            state.assign(arrays[f"states/{i}"])
        if not same_size:
            offset_seeds_by_rank(self._world, self._trainer.flat.states)
        self.load_server_weights()

    def slow_down(self) -> float:
        return self._trainer.update.slow_down()


class _RoundsLog:
    """Logger of ``rounds.jsonl``: one line a round, with the reports of its clients.

    Args:
        path: Path of the file.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._lines: list[str] = []
        self.reports: list[ClientReport] = []

    def start(self, about: About, epochs: Sequence[EpochRecord]) -> None:
        """Read the rounds of the interrupted run."""
        if epochs and self._path.exists():
            self._lines = self._path.read_text(encoding="utf-8").splitlines()
        self.rewind(epochs)

    def rewind(self, epochs: Sequence[EpochRecord]) -> None:
        """Keep these rounds only."""
        self._lines = [line for line in self._lines if json.loads(line)["round"] <= len(epochs)]

    def epoch(self, record: EpochRecord) -> None:
        """Add a round, whose ``reports`` are known, and write the file."""
        line = {
            "round": record.epoch, "test_loss": record.test_loss, "test_accuracy": record.test_accuracy
        }  # fmt: skip
        self._lines.append(json.dumps({**line, "clients": [asdict(report) for report in self.reports]}))
        files.write_text(self._path, "\n".join(self._lines) + "\n")

    def finish(self, record: RunRecord) -> None:
        """Nothing is left to write."""


def _describe(run: Run, site: _RankClients, evaluator: Evaluator) -> None:
    """Writes what each client has and how the final model does on it, as JSON and as a picture."""
    mine = []
    for client in site.clients:
        own = site.examples_of(client)
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
