"""The custom training loop that ``mpi``, ``custom`` and ``pipeline`` share, from the model to the record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mpi_train.collectives.averaging import Averaging, NoAveraging
from mpi_train.data.examples import Examples
from mpi_train.models import zoo
from mpi_train.models.compiling import compile_model, has_own_train_step
from mpi_train.models.flat import FlatModel
from mpi_train.models.optimizers import LearningRate, follows_schedule
from mpi_train.runs import epochs
from mpi_train.runs.checkpoints import Arrays
from mpi_train.runs.config import StepConfig, one_example_a_rank
from mpi_train.runs.record import RunRecord
from mpi_train.runs.resumable import EXCHANGE, ResumableRun, State, copies
from mpi_train.runs.run import Run
from mpi_train.runtime.devices import local_devices
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.world import World
from mpi_train.strategies.config import DevicesConfig
from mpi_train.training.evaluation import Evaluator, Scores
from mpi_train.training.inputs import first_batch
from mpi_train.training.objective import Objective
from mpi_train.training.replicas import average_statistics, check_equal, offset_seeds_by_rank, start_equal
from mpi_train.training.steps import steps_of_epoch
from mpi_train.training.trainer import Trainer


def build(run: Run, examples: Examples, *, follows_keras: bool = True) -> Objective:
    """Build and compile the model that the options of ``run`` name, on a few of the ``examples``.

    Args:
        run, examples: The run, and examples of this rank.
        follows_keras: True if the strategy trains by ``Objective`` instead of Keras's ``fit``.

    Raises:
        UsageError: the model cannot be built, or does not fit the data or the strategy.
    """
    config = run.config
    objective, notes = objective_of(config, run.input_shape, run.num_classes, examples)
    if follows_keras and has_own_train_step(objective.model):
        raise UsageError(
            f"--model {config.model}: expected Keras's own training step, which {run.strategy} follows. "
            "Got: a model with a train_step of its own",
            remedy="baseline or mirrored, which train by Keras fit and run it",
        )
    if config.on_nan == "rollback" and follows_schedule(objective.optimizer):
        raise UsageError(
            "--on-nan rollback: expected an optimizer with a constant learning rate, which it halves. "
            "Got: a model compiled with a schedule",
            remedy="--learning-rate, which replaces the schedule, or --on-nan stop",
        )
    if objective.couples and (run.world.size > 1 or getattr(config, "devices", 1) != 1):
        notes.append(
            "the loss of a batch is no mean over its examples: each rank or device computes it on its own "
            "part, which differs from Keras fit"
        )
    for note in notes:
        run.progress.say(note)
    return objective


def objective_of(
    config: StepConfig, input_shape: tuple[int, int, int], num_classes: int, examples: Examples
) -> tuple[Objective, list[str]]:
    """Build and compile the model that ``config`` names; see ``zoo.build`` and ``compile_model``.

    Returns:
        Its objective, and what was chosen that a user might not expect.
    """
    model = zoo.build(config.model, input_shape, num_classes, seed=config.seed, dtype=config.dtype)
    notes = compile_model(
        model,
        *first_batch(examples),
        num_classes=num_classes,
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        loss=config.loss,
        metrics=[name.strip() for name in (config.metrics or "").split(",") if name.strip()],
    )
    return Objective(model, examples), notes


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
    adapt: Callable[[Objective], Objective] = lambda objective: objective,
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
        objective = build(run, examples)
    objective = adapt(objective)
    optimizer = objective.optimizer
    rate.apply_to(optimizer)
    num_warmup = max(1, round(rate.warmup_epochs * steps_of_epoch(run.num_train, config.batch_size)))
    warmup = (1 / rate.factor, num_warmup) if rate.warmup_epochs else None
    flat = FlatModel(objective.model, devices[0], objective.states)
    trainer = Trainer(
        flat, optimizer, examples, objective, averaging=averaging(flat), devices=devices, warmup=warmup
    )
    evaluator = Evaluator(objective, flat.values, test_examples)
    start_equal(world, trainer.variables)
    offset_seeds_by_rank(world, flat.seeds)
    return fit(run, trainer, evaluator, state=TrainerState(trainer, world), sync=sync, export=trainer.export)


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
    replicas, num_parts = run.replicas, len(trainer.devices)
    run.lap("build")
    trainer.warm_up(epochs.steps_of(run, 1, num_parts))
    evaluator.trace()

    def train_epoch(resumable: ResumableRun) -> None:
        steps, first = epochs.begin_epoch(resumable, num_parts)
        trainer.averaging.begin_epoch(resumable.position.epoch)
        rest = trainer.train_epoch(steps, run.world, resumable, first=first)
        average_statistics(replicas, trainer.flat, len(trainer.examples))
        with run.world.together():
            when = f"after epoch {resumable.position.epoch}"
            check_equal(replicas, trainer.flat.arrays(), when=when, name=run.world.name)
        resumable.end_epoch(rest, lambda: scores(evaluator.evaluate()))

    return epochs.train_epochs(run, state, train_epoch, objective=trainer.objective, **record)


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
            offset_seeds_by_rank(self._world, self._trainer.flat.seeds)
