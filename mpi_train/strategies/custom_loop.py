"""The custom training loop that ``mpi``, ``custom`` and ``pipeline`` share, from the model to the record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras

from mpi_train.collectives.averaging import Averaging, NoAveraging
from mpi_train.models import optimizers, zoo
from mpi_train.models.flat import FlatModel, digest_of
from mpi_train.models.optimizers import LearningRate
from mpi_train.runs import epochs
from mpi_train.runs.checkpoints import Arrays
from mpi_train.runs.config import one_example_a_rank
from mpi_train.runs.record import RunRecord
from mpi_train.runs.resumable import EXCHANGE, ResumableRun, State, copies
from mpi_train.runs.run import Run
from mpi_train.runtime.devices import local_devices
from mpi_train.runtime.world import World
from mpi_train.strategies.config import DevicesConfig
from mpi_train.training.evaluation import Evaluator, Scores
from mpi_train.training.replicas import average_statistics, check_equal, offset_seeds_by_rank, start_equal
from mpi_train.training.steps import epoch_order, plan_steps
from mpi_train.training.trainer import Trainer


def build(run: Run) -> tuple[keras.Model, keras.Optimizer]:
    """Build the model and the optimizer that the options of ``run`` name; raises ``UsageError``."""
    config = run.config
    model = zoo.build(config.model, run.input_shape, run.num_classes, seed=config.seed, dtype=config.dtype)
    return model, optimizers.build(config.optimizer, config.learning_rate)


def train_custom(config: DevicesConfig, world: World, threads: int) -> RunRecord:
    """Train over the devices of this process, each batch split by hand, and write the record.

    The weights live on the first device. In every step each device reads them and returns the gradient of its
    part of the batch. The sum is applied once. All of it is one graph.
    """
    names = local_devices(config.devices)
    return train(
        Run("custom", replace(config, devices=len(names)), world, threads),
        devices=names,
        averaging=lambda _: NoAveraging(),
        sync={"average": "gradients", "every": 1, "devices": len(names)},
        rate=LearningRate(),
    )


def train(
    run: Run,
    *,
    devices: Sequence[str],
    averaging: Callable[[FlatModel], Averaging],
    sync: dict[str, Any],
    rate: LearningRate,
    adapt: Callable[[keras.Model], keras.Model] = lambda model: model,
) -> RunRecord:
    """Train on ``devices`` of this process and, through ``averaging``, with the other ranks.

    Args:
        run: The frame.
        devices: Devices of this process; the first holds the weights.
        averaging: Function that makes the averaging policy for a model.
        sync, rate: Entry ``sync`` of the record; scaling and warm-up of the learning rate.
        adapt: Function that makes the trained model of the built one, on all ranks together. It raises on
            all ranks or on none.
    """
    config, world = run.config, run.world
    one_example_a_rank(config.batch_size, world.size)
    examples, test_examples = run.read("train"), run.read("test")
    with world.together():
        model, optimizer = build(run)
    model = adapt(model)
    rate.apply_to(optimizer)
    steps_an_epoch = -(-run.num_train // config.batch_size)
    num_warmup = max(1, round(rate.warmup_epochs * steps_an_epoch))
    warmup = (1 / rate.factor, num_warmup) if rate.warmup_epochs else None
    flat = FlatModel(model, devices[0])
    trainer = Trainer(flat, optimizer, examples, averaging=averaging(flat), devices=devices, warmup=warmup)
    evaluator = Evaluator(flat.predict, test_examples, from_logits=not zoo.returns_probabilities(model))
    start_equal(world, trainer.variables)
    offset_seeds_by_rank(world, flat.states)
    return fit(
        run,
        trainer,
        evaluator,
        state=TrainerState(trainer, world),
        model=(model.name, model.count_params()),
        sync=sync,
        weights_sha256=lambda: digest_of(flat.export()),
    )


def fit(
    run: Run,
    trainer: Trainer,
    evaluator: Evaluator,
    *,
    state: State,
    scores: Callable[[Scores], Scores] = lambda scores: scores,
    **record: Any,
) -> RunRecord:
    """Train a built trainer, equal on all ranks, and write the record.

    Args:
        run, trainer, evaluator, state: The parts.
        scores: Function from the scores of this rank's evaluation to those that count.
        **record: See ``train_epochs``.
    """
    config, replicas, examples = run.config, run.replicas, trainer.examples
    num_parts = len(trainer.devices)
    rank, size = replicas.rank, replicas.size
    steps = plan_steps(run.num_train, config.batch_size, rank=rank, size=size, num_parts=num_parts)
    run.lap("build")
    trainer.warm_up(epoch_order(config.seed, 0, rank, len(examples)), steps)
    evaluator.trace()

    def train_epoch(resumable: ResumableRun) -> None:
        epoch = epochs.begin_epoch(resumable, examples, num_parts=num_parts)
        if epoch.examples is not trainer.examples:
            trainer.feed(epoch.examples)
        trainer.averaging.begin_epoch(epoch.number)
        rest = trainer.train_epoch(epoch.order, epoch.steps, run.world, resumable, first=epoch.first)
        average_statistics(replicas, trainer.flat, len(examples))
        with run.world.together():
            when = f"after epoch {epoch.number}"
            check_equal(replicas, trainer.flat.arrays(), when=when, name=run.world.name)
        resumable.end_epoch(rest, lambda: scores(evaluator.evaluate()))

    return epochs.train_epochs(run, state, train_epoch, optimizer=trainer.update.optimizer, **record)


class TrainerState:
    """Variables of a trainer, for a checkpoint."""

    def __init__(self, trainer: Trainer, world: World) -> None:
        self._trainer, self._world, self.slow_down = trainer, world, trainer.update.slow_down
        self._variables = {
            "weights": trainer.flat.weights.value,
            **{f"states/{i}": state for i, state in enumerate(trainer.flat.states)},
            **{f"optimizer/{i}": variable for i, variable in enumerate(trainer.update.variables)},
            **{f"{EXCHANGE}{name}": array for name, array in trainer.averaging.variables.items()},
        }

    def arrays(self) -> Arrays:
        """Copy all variables."""
        return copies(self._variables)

    def restore(self, arrays: Arrays, *, same_size: bool) -> None:
        """Load all variables; see ``State``."""
        for name, variable in self._variables.items():
            if name in arrays or not name.startswith(EXCHANGE):
                variable.assign(arrays[name])
        if not same_size:
            offset_seeds_by_rank(self._world, self._trainer.flat.states)
