"""What ``mpi`` and ``custom`` share: a run of our own training loop, from model to record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mpi_train import models, optimizers
from mpi_train.averaging import Nothing
from mpi_train.equality import average_statistics, check_equal, part_seeds, start_equal
from mpi_train.evaluation import Evaluator
from mpi_train.flat import FlatModel, digest_of
from mpi_train.order import epoch_order, plan_steps
from mpi_train.records import RunRecord
from mpi_train.run import Run
from mpi_train.trainer import Trainer


def train(
    run: Run, *, devices: Sequence[str], averaging: Callable[[FlatModel], Nothing], sync: dict[str, Any]
) -> RunRecord:
    """Trains on ``devices`` of this process and, through ``averaging``, with the other ranks.

    Args:
        run: The frame: config, data, records.
        devices: The first holds the weights.
        averaging: Makes what is averaged over the ranks, for a given model.
        sync: What the record says about it.
    """
    config, world = run.config, run.world
    examples, test_examples = run.read("train"), run.read("test")
    with world.together():
        model = models.build(
            config.model, run.input_shape, run.num_classes, seed=config.seed, dtype=config.dtype
        )
        optimizer = optimizers.build(config.optimizer, config.learning_rate)
    flat = FlatModel(model, devices[0])
    trainer = Trainer(flat, optimizer, examples, averaging=averaging(flat), devices=devices)
    evaluator = Evaluator(flat.predict, test_examples, from_logits=not models.returns_probabilities(model))
    start_equal(world, trainer.variables)
    part_seeds(world, flat.states)
    steps = plan_steps(
        run.num_train, config.batch_size, rank=world.rank, size=world.size, num_parts=len(devices)
    )
    trainer.warm_up(epoch_order(config.seed, 0, world.rank, len(examples)), steps)
    evaluator.trace()
    run.start(model)
    for epoch in range(1, config.epochs + 1):
        run.begin_epoch(epoch, len(steps))
        order = epoch_order(config.seed, epoch, world.rank, len(examples))
        totals = trainer.train_epoch(order, steps, world, run.progress.advance)
        average_statistics(world, flat, len(examples))
        check_equal(world, flat.arrays(), when=f"after epoch {epoch}")
        run.end_epoch(epoch, totals, evaluator.evaluate)
    return run.finish(optimizer=optimizer, sync=sync, weights_sha256=digest_of(flat.export()))
