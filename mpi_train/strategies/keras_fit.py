"""What ``baseline`` and ``mirrored`` share: Keras's own ``fit``, as a user would write it.

Two things differ from the shortest form. Warm-up: one step is run and undone before the clock
starts, so that tracing is not counted; under MirroredStrategy ``fit`` traces once more for the iterator
of each call, which stays in the first epoch. And the data pipeline: with TensorFlow 2.21, dropping an
iterator of tf.data can block for seconds while its autotuner sleeps, which happens at the end of
every epoch. So there is one iterator for all epochs (``repeat`` and ``steps_per_epoch``), without
autotuner. An epoch in which a step took unusually long all the same is marked as stalled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mpi_train import models, optimizers
from mpi_train.data.examples import Examples
from mpi_train.evaluation import Evaluator
from mpi_train.flat import digest_of
from mpi_train.records import EpochTotals, RunRecord
from mpi_train.run import Run
from mpi_train.trainer import as_input

STALL_S, STALL_FACTOR = 1.0, 20
"""An epoch has stalled when a step took longer than the one, in seconds, and than the other median steps."""


def train(run: Run, *, scope: Callable[[], AbstractContextManager[Any]], sync: dict[str, Any]) -> RunRecord:
    """Builds and compiles the model inside ``scope()``, and trains it with ``fit``.

    Args:
        run: The frame: config, data, records.
        scope: Where variables are made, such as that of a ``tf.distribute.Strategy``.
        sync: What the record says about it.
    """
    config = run.config
    examples, test_examples = run.read("train"), run.read("test")
    with scope():
        model = models.build(
            config.model, run.input_shape, run.num_classes, seed=config.seed, dtype=config.dtype
        )
        optimizer = optimizers.build(config.optimizer, config.learning_rate)
        from_logits = not models.returns_probabilities(model)
        model.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits),
            metrics=["accuracy"],
        )
    evaluator = Evaluator(
        lambda images: model(images, training=False), test_examples, from_logits=from_logits
    )
    pipeline = batches(examples, config.batch_size, config.seed)
    steps_per_epoch = -(-len(examples) // config.batch_size)
    with scope():
        _warm_up(model, pipeline)
    evaluator.trace()
    run.start(model)
    model.fit(
        pipeline,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        shuffle=False,  # the pipeline does it
        verbose=0,
        callbacks=[_Watch(run, evaluator, steps_per_epoch)],
    )
    return run.finish(optimizer=optimizer, sync=sync, weights_sha256=digest_of(model))


def batches(examples: Examples, batch_size: int, seed: int) -> tf.data.Dataset:
    """Shuffled batches of float32 images and labels, epoch after epoch without end."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    images = as_input(tf.convert_to_tensor(examples.images))
    labels = tf.convert_to_tensor(examples.labels.astype(np.int32))
    # Indices are shuffled and the examples of a batch gathered at once, as Keras does with arrays:
    # faster than shuffling the images themselves.
    return (
        tf.data.Dataset.range(len(examples))
        .shuffle(len(examples), seed=seed)
        .batch(batch_size)
        .map(lambda indices: (tf.gather(images, indices), tf.gather(labels, indices)))
        .prefetch(2)
        .repeat()
        .with_options(options)
    )


def _warm_up(model: keras.Model, pipeline: tf.data.Dataset) -> None:
    """Traces ``fit`` with one step, then puts the model and its optimizer back as they were."""
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    before = [variable.numpy() for variable in variables]
    model.fit(pipeline, epochs=1, steps_per_epoch=1, shuffle=False, verbose=0)
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)


class _Watch(keras.callbacks.Callback):
    """Times the epochs and hands them to the run."""

    # Or Keras would wait for every step's figures, which plain ``fit`` does not.
    async_safe = True

    def __init__(self, run: Run, evaluator: Evaluator, num_steps: int) -> None:
        super().__init__()
        self._run, self._evaluator, self._num_steps = run, evaluator, num_steps
        self._start = self._last_shown = 0.0
        self._ends: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._run.begin_epoch(epoch + 1, self._num_steps)
        self._start = self._last_shown = time.perf_counter()
        self._ends = [self._start]

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        now = time.perf_counter()
        self._ends.append(now)
        if now - self._last_shown > 0.5 and logs:
            self._last_shown = now
            self._run.progress.advance(batch + 1, float(logs["loss"]))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        now = time.perf_counter()
        steps_s = np.diff([*self._ends, now])
        stalled = bool(steps_s.max() > max(STALL_S, STALL_FACTOR * np.median(steps_s)))
        assert logs is not None
        totals = EpochTotals(
            loss=float(logs["loss"]), accuracy=float(logs["accuracy"]), train_s=now - self._start
        )
        self._run.end_epoch(epoch + 1, totals, self._evaluator.evaluate, stalled=stalled)
