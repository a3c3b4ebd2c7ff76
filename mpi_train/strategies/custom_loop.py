"""What ``mpi``, ``custom`` and ``pipeline`` share: a run of our own training loop, to its record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras

from mpi_train.collectives.averaging import Nothing
from mpi_train.data.examples import Examples
from mpi_train.models import optimizers, zoo
from mpi_train.models.flat import FlatModel, digest_of
from mpi_train.models.optimizers import LearningRate
from mpi_train.runs.checkpoints import Arrays
from mpi_train.runs.config import one_example_a_rank
from mpi_train.runs.epochs import lay_out
from mpi_train.runs.record import RunRecord
from mpi_train.runs.run import Run
from mpi_train.runs.session import EXCHANGE, Session, State, copies
from mpi_train.runtime.devices import local_devices
from mpi_train.runtime.errors import DivergedError
from mpi_train.runtime.world import World
from mpi_train.strategies.config import DevicesConfig
from mpi_train.training.evaluation import Evaluator
from mpi_train.training.replicas import average_statistics, check_equal, part_seeds, start_equal
from mpi_train.training.steps import epoch_order, plan_steps
from mpi_train.training.trainer import Trainer


def train_custom(config: DevicesConfig, world: World, threads: int) -> RunRecord:
    """Train over the devices of this process, each batch split by hand, and write the record.

    The weights live on the first device. In every step each device reads them and returns the gradient of its
    part of the batch. The sum is applied once. All of it is one graph.
    """
    names = local_devices(config.devices)
    return train(
        Run("custom", replace(config, devices=len(names)), world, threads),
        devices=names,
        averaging=lambda _: Nothing(),
        sync={"average": "gradients", "every": 1, "devices": len(names)},
    )


def train(
    run: Run,
    *,
    devices: Sequence[str],
    averaging: Callable[[FlatModel], Nothing],
    sync: dict[str, Any],
    rate: LearningRate | None = None,
    adapt: Callable[[keras.Model], keras.Model] = lambda model: model,
    details: Callable[[], dict[str, Any]] = dict,
) -> RunRecord:
    """Trains on ``devices`` of this process and, through ``averaging``, with the other ranks.

    Args:
        run: The frame: config, data, records.
        devices: The first holds the weights.
        averaging: Makes what is averaged over the ranks, for a given model.
        sync: What the record says about it.
        rate: The learning rate, where it is not simply the one that was asked for.
        adapt: Makes of the model the one that is trained; on all ranks together, and raises on all or none.
        details: As for ``fit``.
    """
    config, world = run.config, run.world
    one_example_a_rank(config.batch_size, world.size)
    examples, test_examples = run.read("train"), run.read("test")
    with world.together():
        model = zoo.build(
            config.model, run.input_shape, run.num_classes, seed=config.seed, dtype=config.dtype
        )
        optimizer = optimizers.build(config.optimizer, config.learning_rate)
    model = adapt(model)
    warmup = None
    if rate is not None:
        rate.apply_to(optimizer)
        if rate.warmup_epochs:
            steps_an_epoch = -(-run.num_train // config.batch_size)
            warmup = (1 / rate.factor, max(1, round(rate.warmup_epochs * steps_an_epoch)))
    flat = FlatModel(model, devices[0])
    trainer = Trainer(flat, optimizer, examples, averaging=averaging(flat), devices=devices, warmup=warmup)
    evaluator = Evaluator(flat.predict, test_examples, from_logits=not zoo.returns_probabilities(model))
    start_equal(world, trainer.variables)
    part_seeds(world, flat.states)
    return fit(
        run,
        trainer,
        evaluator,
        name=model.name,
        num_weights=model.count_params(),
        state=_State(trainer, world),
        sync=sync,
        digest=lambda: digest_of(flat.export()),
        details=details,
    )


def fit(
    run: Run,
    trainer: Trainer,
    evaluator: Evaluator,
    *,
    name: str,
    num_weights: int,
    state: State,
    sync: dict[str, Any],
    digest: Callable[[], str],
    details: Callable[[], dict[str, Any]] = dict,
    work: dict[str, Any] | None = None,
) -> RunRecord:
    """Trains what is built, and the same on all ranks, from the first epoch to the record.

    Args:
        run, trainer, evaluator: The parts.
        name, num_weights: Of the model.
        state: What is saved of it.
        sync: What the record says of the strategy.
        digest: Of the final weights; called at the end, on all ranks together.
        details: What the record says of it that is known at the end; called on all ranks together.
        work: As for ``Session``.
    """
    config, examples, peers = run.config, trainer.examples, run.peers
    steps = plan_steps(
        run.num_train,
        config.batch_size,
        rank=peers.rank,
        size=peers.size,
        num_parts=len(trainer.devices),
    )
    run.lap("build")
    trainer.warm_up(epoch_order(config.seed, 0, peers.rank, len(examples)), steps)
    evaluator.trace()
    session = Session(run, state, work)
    session.begin()
    run.start(name, num_weights)
    with session.training():
        while session.position.epoch <= config.epochs:
            try:
                _train_epoch(session, trainer, examples, evaluator)
            except DivergedError as error:
                session.roll_back(error)
    return session.finish(
        optimizer=trainer.update.optimizer, sync=sync, weights_sha256=digest(), details=details()
    )


def _train_epoch(session: Session, trainer: Trainer, examples: Examples, evaluator: Evaluator) -> None:
    """Trains an epoch, or the rest of one that was interrupted."""
    run, world, peers = session.run, session.run.world, session.run.peers
    epoch = lay_out(session, examples, num_parts=len(trainer.devices))
    if epoch.examples is not trainer.examples:
        trainer.feed(epoch.examples)
    trainer.averaging.begin_epoch(epoch.number)
    rest = trainer.train_epoch(epoch.order, epoch.steps, world, session, first=epoch.first)
    average_statistics(peers, trainer.flat, len(examples))
    check_equal(world, trainer.flat.arrays(), when=f"after epoch {epoch.number}", part=run.part)
    session.end_epoch(run.end_epoch(epoch.number, session.whole(rest), evaluator.evaluate))


class _State:
    """The trainer's variables, for a checkpoint."""

    def __init__(self, trainer: Trainer, world: World) -> None:
        self._trainer, self._world = trainer, world
        self._variables = {
            "weights": trainer.flat.weights.value,
            **{f"states/{i}": state for i, state in enumerate(trainer.flat.states)},
            **{f"optimizer/{i}": variable for i, variable in enumerate(trainer.update.variables)},
            **{f"{EXCHANGE}{name}": held for name, held in trainer.averaging.variables.items()},
        }

    def arrays(self) -> Arrays:
        return copies(self._variables)

    def restore(self, arrays: Arrays, *, same_size: bool) -> None:
        for name, variable in self._variables.items():
            if name in arrays or not name.startswith(EXCHANGE):
                variable.assign(arrays[name])
        if not same_size:
            part_seeds(self._world, self._trainer.flat.states)

    def slow_down(self) -> float:
        return self._trainer.update.slow_down()
