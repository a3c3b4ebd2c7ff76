"""Keras ``fit`` as a user would write it: baseline, tuned and mirrored.

Two things differ from the shortest form. Warm-up: one step is run and undone before the clock starts, so that
tracing is not counted. Data pipeline: in TensorFlow 2.21, dropping an iterator of tf.data can block for
seconds while its autotuner sleeps. So one iterator without autotuner serves all epochs. An epoch with an
unusually long step is marked as stalled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mpi_train.data.examples import Examples
from mpi_train.models import zoo
from mpi_train.models.flat import digest_of
from mpi_train.monitor import timeline
from mpi_train.runs import epochs
from mpi_train.runs.keras_state import KerasState
from mpi_train.runs.record import RunRecord
from mpi_train.runs.resumable import ResumableRun
from mpi_train.runs.run import Run
from mpi_train.runtime import devices
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.world import World
from mpi_train.strategies.config import BaselineConfig, DevicesConfig
from mpi_train.strategies.custom_loop import build
from mpi_train.training.evaluation import Evaluator
from mpi_train.training.loop import CHUNK_S, Chunk
from mpi_train.training.losses import as_input
from mpi_train.training.totals import EpochTotals

TUNED_STEPS_PER_EXECUTION = 32
"""Steps per visit to Python under ``--tuned``."""
STALL_S, STALL_FACTOR = 1.0, 20
"""An epoch is stalled if a step took longer than this many seconds and this many median steps."""


def train_baseline(config: BaselineConfig, world: World, threads: int) -> RunRecord:
    """Train in one process and write the record."""
    devices.own_device(world)
    return _train(
        Run("tuned" if config.tuned else "baseline", config, world, threads),
        scope=nullcontext,
        sync={"average": "none", "devices": 1},
        steps_per_execution=TUNED_STEPS_PER_EXECUTION if config.tuned else 1,
    )


def train_mirrored(config: DevicesConfig, world: World, threads: int) -> RunRecord:
    """Train under ``tf.distribute.MirroredStrategy`` and write the record.

    Raises:
        UsageError: the global batch does not divide evenly over the devices.
    """
    names = devices.local_devices(config.devices)
    if config.batch_size % len(names):
        raise UsageError(
            f"--batch-size: expected a multiple of the {len(names)} devices, because MirroredStrategy splits "
            f"batches evenly. Got: {config.batch_size}",
            remedy=f"--batch-size {-(-config.batch_size // len(names)) * len(names)}, or other --devices",
        )
    strategy = tf.distribute.MirroredStrategy(names)
    return _train(
        Run("mirrored", replace(config, devices=len(names)), world, threads),
        scope=strategy.scope,
        sync={"average": "gradients", "every": 1, "devices": len(names)},
    )


def _train(
    run: Run,
    *,
    scope: Callable[[], AbstractContextManager[Any]],
    sync: dict[str, Any],
    steps_per_execution: int = 1,
) -> RunRecord:
    """Build and compile the model inside ``scope()``, train it with ``fit``, and write the record."""
    config = run.config
    examples, test_examples = run.read("train"), run.read("test")
    with scope():
        model, optimizer = build(run)
        from_logits = not zoo.returns_probabilities(model)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
        model.compile(optimizer, loss, metrics=["accuracy"], steps_per_execution=steps_per_execution)
    evaluator = Evaluator(partial(model, training=False), test_examples, from_logits=from_logits)
    num_steps = -(-len(examples) // config.batch_size)
    pipelines = _Pipelines(examples, config.batch_size, config.seed)
    run.lap("build")
    with scope():
        _warm_up(model, pipelines.endless(1, 0))
    evaluator.trace()

    def fit_epochs(resumable: ResumableRun) -> None:
        epoch, first = resumable.position.epoch, resumable.position.step
        if steps_per_execution > 1:
            # Keras would run whole executions, past the end of the epoch: the data must end it.
            pipeline, steps, last = pipelines.one(epoch, first), None, epoch
        else:
            # One iterator serves all epochs; the rest of an interrupted one needs its own.
            pipeline = pipelines.endless(epoch, first)
            steps, last = num_steps - first, epoch if first else config.epochs
        model.fit(
            pipeline,
            initial_epoch=epoch - 1,
            epochs=last,
            steps_per_epoch=steps,
            shuffle=False,  # the pipeline shuffles
            verbose=0,
            callbacks=[_RunCallback(resumable, evaluator, num_steps, len(examples))],
        )

    return epochs.train_epochs(
        run,
        KerasState(model, model.optimizer, scope),
        fit_epochs,
        model=(model.name, model.count_params()),
        optimizer=optimizer,
        sync=sync,
        weights_sha256=lambda: digest_of(model),
    )


class _Pipelines:
    """Shuffled batches of float32 images and labels, from any step of any epoch on.

    Indices are shuffled and the examples of a batch gathered at once, like Keras does with arrays. That is
    faster than shuffling the images themselves.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int) -> None:
        self._images = as_input(tf.convert_to_tensor(examples.images))
        self._labels = tf.convert_to_tensor(examples.labels.astype(np.int32))
        self._count, self._batch_size, self._seed = len(examples), batch_size, seed

    def endless(self, epoch: int, num_skipped: int) -> tf.data.Dataset:
        """Return epochs without end, from ``epoch`` on, without its first ``num_skipped`` steps."""

        def numbers(number: tf.Tensor) -> tf.data.Dataset:
            return self._numbers(number, tf.where(number == epoch, tf.constant(num_skipped, tf.int64), 0))

        return self._gather(tf.data.Dataset.counter(epoch).flat_map(numbers))

    def one(self, epoch: int, num_skipped: int) -> tf.data.Dataset:
        """Return one epoch without its first ``num_skipped`` steps."""
        return self._gather(self._numbers(tf.constant(epoch, tf.int64), tf.constant(num_skipped, tf.int64)))

    def _numbers(self, epoch: tf.Tensor, num_skipped: tf.Tensor) -> tf.data.Dataset:
        numbers = tf.data.Dataset.range(self._count).shuffle(self._count, seed=self._seed + epoch)
        # Examples are skipped, not batches: MirroredStrategy may cut the batches smaller.
        return numbers.skip(num_skipped * self._batch_size).batch(self._batch_size)

    def _gather(self, numbers: tf.data.Dataset) -> tf.data.Dataset:
        images, labels = self._images, self._labels
        batches = numbers.map(lambda some: (tf.gather(images, some), tf.gather(labels, some)))
        return batches.prefetch(2).with_options(pipeline_options())


def pipeline_options() -> tf.data.Options:
    """Return options of a pipeline without autotuner, whose data no strategy divides."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


def _warm_up(model: keras.Model, pipeline: tf.data.Dataset) -> None:
    """Trace ``fit`` with one step, then restore the model and its optimizer."""
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    before = [variable.numpy() for variable in variables]
    model.fit(pipeline, epochs=1, steps_per_epoch=1, shuffle=False, verbose=0)
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)


class _RunCallback(keras.callbacks.Callback):
    """Keras callback that times the epochs, records them, and saves or stops the run between steps."""

    # Without it Keras would wait for the logs of every step, which plain ``fit`` does not.
    async_safe = True

    def __init__(
        self, resumable: ResumableRun, evaluator: Evaluator, num_steps: int, num_examples: int
    ) -> None:
        super().__init__()
        self._resumable, self._evaluator = resumable, evaluator
        self._num_steps, self._num_examples = num_steps, num_examples

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        _, self._first = self._resumable.rest_of_epoch()
        self._asked = self._first
        self._resumable.begin_epoch(self._num_steps)
        self._steps_s: list[float] = []
        self._start = self._asked_at = self._last = time.perf_counter()
        timeline.enter("compute")

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        now = time.perf_counter()
        self._steps_s.append(now - self._last)
        self._last = now
        step = min(self._first + batch + 1, self._num_steps)
        if self._resumable.coordinator.is_due(self._asked, step) or now - self._asked_at > CHUNK_S:
            assert logs is not None
            with timeline.phase("host"):
                self._ask(step, logs)

    def _ask(self, step: int, logs: dict[str, float]) -> None:
        loss, elapsed_s = float(logs["loss"]), time.perf_counter() - self._asked_at
        count = self._count(step) - self._count(self._asked)
        chunk = Chunk(self._asked, step, elapsed_s, loss, bool(np.isfinite(loss)), count)
        _, pause = self._resumable.after(chunk, self._resumable.run.world)
        if pause and step < self._num_steps:
            so_far, begin = self._totals(step, logs), time.perf_counter()
            self._resumable.pause(step, so_far)
            self._last = time.perf_counter()
            self._start += self._last - begin
        self._asked, self._asked_at = step, time.perf_counter()

    def _count(self, step: int) -> int:
        """Count the examples of an epoch's first steps."""
        return min(step * self._resumable.run.config.batch_size, self._num_examples)

    def _totals(self, step: int, logs: dict[str, float]) -> EpochTotals:
        """Return the totals of the steps since the start of this ``fit``."""
        count, train_s = self._count(step) - self._count(self._first), time.perf_counter() - self._start
        loss, correct = float(logs["loss"]) * count, float(logs["accuracy"]) * count
        return EpochTotals(loss=loss, correct=correct, count=count, train_s=train_s)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        assert logs is not None
        rest = self._totals(self._num_steps, logs)
        timeline.leave()
        steps_s = [*self._steps_s, time.perf_counter() - self._last]
        stalled = max(steps_s) > max(STALL_S, STALL_FACTOR * float(np.median(steps_s)))
        self._resumable.end_epoch(rest, self._evaluator.evaluate, stalled=stalled)
