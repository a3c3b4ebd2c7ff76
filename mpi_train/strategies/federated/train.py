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
from contextlib import suppress
from dataclasses import asdict, dataclass

import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import Nothing
from mpi_train.collectives.base import all_reduce_bytes
from mpi_train.data.examples import Examples
from mpi_train.models import optimizers, zoo
from mpi_train.models.flat import FlatModel, digest_of
from mpi_train.monitor import timeline
from mpi_train.runs import coordinator
from mpi_train.runs.checkpoints import Arrays
from mpi_train.runs.record import RunRecord
from mpi_train.runs.run import Run
from mpi_train.runs.session import Session, copies
from mpi_train.runtime import devices, files, watchdog
from mpi_train.runtime.errors import DivergedError
from mpi_train.runtime.world import World
from mpi_train.strategies.federated import chart
from mpi_train.strategies.federated.clients import Client, choose, clients_of
from mpi_train.strategies.federated.config import FederatedConfig
from mpi_train.training.evaluation import Evaluator
from mpi_train.training.loop import Chunk, ChunkCallback, run_chunks
from mpi_train.training.replicas import check_equal, part_seeds, start_equal
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
    part_seeds(world, flat.states)
    run.lap("build")
    server = _Server(trainer, world, config.server_momentum)
    site = _Site(trainer, server, mine, config)
    site.warm_up()
    evaluator.trace()
    session = Session(run, server)
    session.begin()
    if session.position.epoch == 1:
        session.save()
    log = _Log(run, session.position.epoch)
    run.start(model.name, model.count_params())
    with session.training():
        while session.position.epoch <= config.epochs:
            number = session.position.epoch
            try:
                totals, told = _train_round(session, site, server, clients, config)
                check_equal(world, server.model(), when=f"after round {number}")
                count = sum(client.examples for client in told) * config.local_epochs
                record = run.end_epoch(number, totals, evaluator.evaluate, expected=count)
                log.add(number, told, record.test_loss, record.test_accuracy)
                session.end_epoch(record)
            except DivergedError as error:
                session.roll_back(error)
                log.forget_from(session.position.epoch)
    _describe(run, site, evaluator)
    return session.finish(
        optimizer=optimizer,
        sync={
            "average": "clients",
            "clients": len(clients),
            "fraction": config.fraction,
            "local_epochs": config.local_epochs,
            "proximal": config.proximal,
            "server_momentum": config.server_momentum,
        },
        weights_sha256=digest_of(flat.export()),
    )


@dataclass(frozen=True)
class Told:
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
    session: Session, site: _Site, server: _Server, clients: list[Client], config: FederatedConfig
) -> tuple[EpochTotals, list[Told]]:
    """One round, on all ranks together. There is no checkpoint within one."""
    world, number = session.run.world, session.position.epoch
    chosen = [clients[i] for i in choose(len(clients), config.fraction, config.seed, number)]
    mine = [client for client in chosen if client.rank == world.rank]
    num_turns = max(sum(client.rank == rank for client in chosen) for rank in range(world.size))
    num_examples = sum(client.num_examples for client in chosen)
    session.begin_epoch(num_turns)
    server.begin_round()
    world.barrier()
    begin = time.perf_counter()
    compute_s = waiting_s = 0.0
    told: list[Told] = []
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
                        server.take(client.num_examples / num_examples)
                    loss, count = totals.mean_loss, totals.count
                    told.append(
                        Told(
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
                session.after(Chunk(turn, turn + 1, trained - start, loss, finite, count, 0.0), world)
                missing = min(turn + 1, len(mine)) - len(told)
                if session.control.stopping and (turn + 1 < num_turns or world.maximum(missing)):
                    session.abandon()
            waiting_s += time.perf_counter() - trained
        start = time.perf_counter()
        sent_bytes = server.end_round()
        reduce_s = time.perf_counter() - start
    train_s = time.perf_counter() - begin
    everyone = world.gather_all((train_s, compute_s, waiting_s, reduce_s, told))
    moving_s = min(rank[3] for rank in everyone)
    all_told = sorted((one for rank in everyone for one in rank[4]), key=lambda one: one.client)
    counts = [one.examples * config.local_epochs for one in all_told]
    return EpochTotals(
        loss=sum(one.train_loss * count for one, count in zip(all_told, counts, strict=True)),
        correct=sum(one.train_accuracy * count for one, count in zip(all_told, counts, strict=True)),
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
    ), all_told


class _Site:
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
        self._server.hand_out()
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
                steps,
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
    """Looks at the chunks of one client; what it sees is told to the other ranks when that has trained."""

    def __init__(self) -> None:
        self.so_far = True

    def after(self, chunk: Chunk, world: World) -> tuple[float, bool]:
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

    def hand_out(self) -> None:
        """Puts the model into the trainer."""
        for variable, value in zip(self._trained, self._model, strict=True):
            variable.assign(value)
        if isinstance(self._trainer.averaging, _Proximal):
            self._trainer.averaging.anchor.assign(self._model[0])

    def begin_round(self) -> None:
        self._sums = [np.zeros_like(value) for value in self._model]

    def take(self, share: float) -> None:
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
        self.hand_out()
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
            part_seeds(self._world, self._trainer.flat.states)
        self.hand_out()

    def slow_down(self) -> float:
        return self._trainer.update.slow_down()


class _Log:
    """``rounds.jsonl``: a line a round, with what each of its clients told. Written by the root.

    Args:
        run: The frame.
        first: The round that comes next; lines of later ones are of a run that was given up.
    """

    def __init__(self, run: Run, first: int) -> None:
        self._run, self._path = run, run.out / ROUNDS
        self._lines: list[str] = []
        if run.world.is_root and first > 1 and self._path.exists():
            self._lines = self._path.read_text(encoding="utf-8").splitlines()
        self.forget_from(first)

    def forget_from(self, number: int) -> None:
        """Drops a round and all after it."""
        self._lines = [line for line in self._lines if json.loads(line)["round"] < number]

    def add(self, number: int, told: list[Told], test_loss: float, test_accuracy: float) -> None:
        if not self._run.world.is_root:
            return
        line = {"round": number, "test_loss": test_loss, "test_accuracy": test_accuracy}
        self._lines.append(json.dumps({**line, "clients": [asdict(one) for one in told]}))
        try:
            files.write_text(self._path, "\n".join(self._lines) + "\n")
        except OSError as error:
            self._run.progress.warn(f"{self._path}: {error.strerror}; not written")


def _describe(run: Run, site: _Site, evaluator: Evaluator) -> None:
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
