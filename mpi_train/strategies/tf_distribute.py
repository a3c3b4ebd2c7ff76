"""A custom training loop under a ``tf.distribute`` strategy: custom_dataset, multiworker and tpu.

A distributed dataset gives each replica its part of a batch, ``strategy.run`` runs the step on each, and the
optimizer sums their gradients. The loss of each example carries its weight in the mean over the global batch,
so that parts of any size add up to the gradient of one process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mpi_train.data.examples import Examples
from mpi_train.models import zoo
from mpi_train.models.flat import digest_of
from mpi_train.runs import epochs
from mpi_train.runs.config import RanksConfig, TrainConfig, one_example_a_rank
from mpi_train.runs.epochs import Epoch
from mpi_train.runs.keras_state import KerasState
from mpi_train.runs.record import RunRecord
from mpi_train.runs.resumable import ResumableRun
from mpi_train.runs.run import Run
from mpi_train.runtime import addresses, devices, watchdog
from mpi_train.runtime.aligned import as_tensor
from mpi_train.runtime.world import World
from mpi_train.strategies.config import DevicesConfig
from mpi_train.strategies.custom_loop import build
from mpi_train.strategies.keras_fit import pipeline_options
from mpi_train.training.evaluation import Evaluator
from mpi_train.training.loop import RunSteps, run_chunks
from mpi_train.training.losses import as_input, losses_of
from mpi_train.training.replicas import check_equal, mean_over_ranks
from mpi_train.training.steps import epoch_order, plan_steps


def train_custom_dataset(config: DevicesConfig, world: World, threads: int) -> RunRecord:
    """Train under MirroredStrategy, over GPUs or logical CPU devices, and write the record."""
    names = devices.local_devices(config.devices)
    return _train(
        Run("custom_dataset", replace(config, devices=len(names)), world, threads),
        tf.distribute.MirroredStrategy(names),
        sync={"average": "gradients", "every": 1, "devices": len(names)},
    )


def train_multiworker(config: RanksConfig, world: World, threads: int) -> RunRecord:
    """Train under MultiWorkerMirroredStrategy on all ranks and write the record.

    MPI starts the ranks, tells them their addresses and watches them; TensorFlow moves the gradients over
    gRPC.
    """
    run = Run("multiworker", config, world, threads)
    with world.together():
        devices.own_device(world, start=False)  # the strategy must be made before TensorFlow starts
    os.environ["TF_CONFIG"] = addresses.tf_config(world)
    watchdog.note("start of TensorFlow's cluster, which waits for every rank", starting=True)
    with devices.quiet_start():
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    try:
        return _train(run, strategy, sync={"average": "gradients", "every": 1})
    except tf.errors.OpError as error:
        lost = re.search(r"unhealthy.*?/task:(\d+)", str(error), re.DOTALL)
        if lost is None:
            raise
        # TensorFlow waits 10 s for a rank, for any --stall-timeout.
        watchdog.end_for(world, int(lost[1]), "is what TensorFlow calls unhealthy: it sends no heartbeats")


def train_tpu(config: TrainConfig, world: World, threads: int) -> RunRecord:
    """Train on a TPU, else on the GPUs of this machine, else on the CPU, and write the record."""
    run = Run("tpu", config, world, threads)
    strategy, device = _tpu_strategy(run)
    num_replicas = strategy.num_replicas_in_sync
    sync = {"average": "gradients", "every": 1, "devices": num_replicas, "device": device}
    return _train(run, strategy, sync, layout={"devices": num_replicas})


def _tpu_strategy(run: Run) -> tuple[tf.distribute.Strategy, str]:
    """Return the strategy for the best device, and the kind of device."""
    gpus = tf.config.list_physical_devices("GPU")
    # Memory growth can only be set before TensorFlow starts.
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    # A search for a TPU would wait for a cloud's answer, so the machine must name one.
    address = os.environ.get("TPU_NAME") or ("local" if any(Path("/dev").glob("accel*")) else None)
    if address is None:
        reason = "no TPU here: neither TPU_NAME nor /dev/accel*"
    else:
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(address)
            return tf.distribute.TPUStrategy(resolver), "TPU"
        except (ValueError, RuntimeError, tf.errors.OpError, OSError) as error:
            reason = f"the TPU {address} does not answer: {str(error).splitlines()[0]}"
    if gpus:
        names = [f"/GPU:{number}" for number in range(len(gpus))]
        run.progress.say(f"tpu: {reason}; training on {len(names)} GPUs instead")
        return tf.distribute.MirroredStrategy(names), "GPU"
    devices.start_tensorflow()
    run.progress.say(f"tpu: {reason}, no GPU either; training on the CPU instead")
    return tf.distribute.OneDeviceStrategy("/CPU:0"), "CPU"


def _train(
    run: Run, strategy: tf.distribute.Strategy, sync: dict[str, Any], layout: dict[str, Any] | None = None
) -> RunRecord:
    """Train under ``strategy``, on each rank of ``run.world`` with the examples of that rank."""
    world = run.world
    one_example_a_rank(run.config.batch_size, world.size)
    examples, test_examples = run.read("train"), run.read("test")
    with world.together():
        # First outside the scope, where no rank waits for another, so that an error of one rank is reported.
        build(run)
    with strategy.scope():
        model, optimizer = build(run)
        optimizer.build(model.trainable_variables)
    loop = _Loop(strategy, model, optimizer, run)
    evaluator = Evaluator(partial(model, training=False), test_examples, from_logits=loop.from_logits)
    run.lap("build")
    loop.warm_up(examples)
    evaluator.trace()

    def train_epoch(resumable: ResumableRun) -> None:
        epoch = epochs.begin_epoch(resumable, examples)
        run_steps, num_steps = loop.prepare(epoch), len(epoch.steps)
        rest = run_chunks(run_steps, num_steps, world, resumable, weights=loop.weights, first=epoch.first)
        loop.average_statistics(len(examples))
        check_equal(world, [*loop.weights(), *loop.statistics()], when=f"after epoch {epoch.number}")
        resumable.end_epoch(rest, evaluator.evaluate)

    return epochs.train_epochs(
        run,
        KerasState(model, optimizer, strategy.scope),
        train_epoch,
        model=(model.name, model.count_params()),
        optimizer=optimizer,
        sync=sync,
        weights_sha256=lambda: digest_of(model),
        layout=layout,
    )


class _Loop:
    """Training of a model and its built optimizer, both made in the scope of ``strategy``."""

    def __init__(
        self, strategy: tf.distribute.Strategy, model: keras.Model, optimizer: keras.Optimizer, run: Run
    ) -> None:
        self.strategy, self.model, self.optimizer = strategy, model, optimizer
        self._config, self._world, self._num_train = run.config, run.world, run.num_train
        self.from_logits = not zoo.returns_probabilities(model)
        self._moving = [v for v in model.non_trainable_variables if keras.backend.is_float_dtype(v.dtype)]
        self._batches: Iterator[Any] | None = None
        self._next_epoch = 0

    def weights(self) -> list[np.ndarray]:
        """Return the trainable weights of this process's first replica."""
        return [variable.numpy() for variable in self.model.trainable_variables]

    def statistics(self) -> list[np.ndarray]:
        """Return BatchNorm's moving statistics, averaged over this process's replicas."""
        return [
            np.mean([part.numpy() for part in self.strategy.experimental_local_results(v.value)], axis=0)
            for v in self._moving
        ]

    def average_statistics(self, num_examples: int) -> None:
        """Average BatchNorm's moving statistics over all replicas, whose own ones follow their own data."""
        if self._moving and self.strategy.num_replicas_in_sync > 1:
            self._assign(self._moving, mean_over_ranks(self._world, self.statistics(), num_examples))

    def _assign(self, variables: list[keras.Variable], values: list[np.ndarray]) -> None:
        with self.strategy.scope():
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

    def warm_up(self, examples: Examples) -> None:
        """Trace the step by running one, and restore all variables."""
        config, world = self._config, self._world
        steps = plan_steps(self._num_train, config.batch_size, rank=world.rank, size=world.size)
        order = epoch_order(config.seed, 1, world.rank, len(examples))
        variables = [*self.model.variables, *self.optimizer.variables]
        before = [np.array(variable.numpy()) for variable in variables]
        first = Epoch(number=1, segment=0, examples=examples, order=order, steps=steps, first=0)
        self._run(self._iterator(first), tf.constant(1))
        self._assign(variables, before)

    def prepare(self, epoch: Epoch) -> RunSteps:
        """Return the function that trains steps of ``epoch``.

        One iterator serves all epochs, because TensorFlow may block for seconds when one is dropped. A new
        one is needed after a rollback, for the rest of an epoch, and after a segment with other examples.
        """
        if self._batches is None or epoch.number != self._next_epoch or epoch.segment or epoch.first:
            self._batches = self._iterator(epoch)
        batches, num_steps = self._batches, len(epoch.steps)
        self._next_epoch = 0

        def run_steps(first: int, stop: int) -> tuple[float, float, int]:
            loss, correct = self._run(batches, tf.constant(stop - first))
            if stop == num_steps and not epoch.segment:
                self._next_epoch = epoch.number + 1
            return float(loss), float(correct), epoch.steps[first:stop].num_examples

        return run_steps

    def _iterator(self, epoch: Epoch) -> Iterator[Any]:
        """Return the rank's batches, in parts for its replicas: the rest of ``epoch``, then later epochs.

        A segment has no later epochs, because those have other examples.
        """
        images, labels = as_tensor(epoch.examples.images), as_tensor(epoch.examples.labels)
        seed, rank = self._config.seed, self._world.rank
        steps, count = epoch.steps, len(epoch.examples)
        begins, sizes = (tf.constant(array[:, 0, 0]) for array in (steps.begins, steps.sizes))
        # The optimizer sums the gradients of all ranks; the suite's own all-reduce averages them.
        scales = tf.constant(steps.scales[:, 0] / self._world.size)
        num_replicas = self.strategy.num_replicas_in_sync // self._world.size

        def one_epoch(number: tf.Tensor) -> tf.data.Dataset:
            order = tf.numpy_function(
                lambda n: epoch_order(seed, int(n), rank, count, epoch.segment if n == epoch.number else 0),
                [number],
                tf.int32,
                stateful=False,
            )
            first = tf.where(number == epoch.number, tf.constant(epoch.first, tf.int64), 0)

            def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
                some = tf.slice(order, begins[step][tf.newaxis], sizes[step][tf.newaxis])
                # Replicas get parts of equal size. Added examples have weight 0. No part is empty, because
                # BatchNorm would make NaN of it.
                num_added = -sizes[step] % num_replicas
                weights = tf.concat([tf.fill(sizes[step][tf.newaxis], scales[step]), tf.zeros(num_added)], 0)
                some = tf.concat([some, tf.repeat(some[:1], num_added)], 0)
                return tf.gather(images, some), tf.gather(labels, some), weights

            return tf.data.Dataset.range(first, len(steps)).map(batch)

        numbers = tf.data.Dataset.counter(epoch.number)
        dataset = (numbers.take(1) if epoch.segment else numbers).flat_map(one_epoch).prefetch(2)
        dataset = dataset.with_options(pipeline_options())
        if self._world.size > 1:
            return iter(self.strategy.distribute_datasets_from_function(lambda _: dataset))
        return iter(self.strategy.experimental_distribute_dataset(dataset))

    @tf.function(autograph=False, reduce_retracing=True)
    def _run(self, batches: Iterator[Any], count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        strategy = self.strategy

        def body(step: tf.Tensor, loss: tf.Tensor, correct: tf.Tensor) -> tuple[tf.Tensor, ...]:
            losses, corrects = strategy.run(self._step, args=next(batches))
            # Sums of this process alone; they meet those of other ranks at the end of the epoch.
            local = strategy.experimental_local_results
            return step + 1, loss + tf.add_n(local(losses)), correct + tf.add_n(local(corrects))

        _, loss, correct = tf.while_loop(
            lambda step, *_: step < count, body, (0, 0.0, 0.0), parallel_iterations=1
        )
        return loss, correct

    def _step(self, images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Run one step of one replica; return the sums of the loss and of the correct predictions."""
        labels = tf.cast(labels, tf.int32)
        with tf.GradientTape() as tape:
            outputs = self.model(as_input(images), training=True)
            losses = losses_of(outputs, labels, from_logits=self.from_logits)
            loss = tf.reduce_sum(losses * weights)
        variables = [variable.value for variable in self.model.trainable_variables]
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))
        counts = tf.sign(weights)
        correct = tf.cast(tf.argmax(outputs, 1, output_type=tf.int32) == labels, tf.float32)
        return tf.reduce_sum(losses * counts), tf.reduce_sum(correct * counts)
