"""A loop of one's own under a ``tf.distribute`` strategy, as TensorFlow's guide to custom training has it.

What ``multiworker``, ``custom_dataset`` and ``tpu`` share. A distributed dataset gives each replica its
part of a batch, ``strategy.run`` runs the step on each, and the optimizer sums their gradients. The loss of
each example carries its weight in the mean over the global batch, so that parts of any size add up
to the gradient of one process. Keras's ``fit`` would do all this under ``MirroredStrategy``, see
``mirrored``; under ``MultiWorkerMirroredStrategy`` Keras 3 has none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mpi_train.data.examples import Examples
from mpi_train.models import optimizers, zoo
from mpi_train.models.flat import digest_of
from mpi_train.runs.config import RanksConfig, TrainConfig, one_example_a_rank
from mpi_train.runs.epochs import Epoch, lay_out
from mpi_train.runs.keras_state import KerasState
from mpi_train.runs.record import RunRecord
from mpi_train.runs.run import Run
from mpi_train.runs.session import Session
from mpi_train.runtime import addresses, devices, watchdog
from mpi_train.runtime.aligned import as_tensor
from mpi_train.runtime.errors import DivergedError
from mpi_train.runtime.world import World
from mpi_train.strategies.config import DevicesConfig
from mpi_train.training.evaluation import Evaluator
from mpi_train.training.loop import run_chunks
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
        # TensorFlow waits 10 s for a rank, whatever --stall-timeout says.
        watchdog.end_for(world, int(lost[1]), "is what TensorFlow calls unhealthy: it sends no heartbeats")


def train_tpu(config: TrainConfig, world: World, threads: int) -> RunRecord:
    """Train on a TPU, else on the GPUs of this machine, else on the CPU, and write the record."""
    run = Run("tpu", config, world, threads)
    strategy, device = _tpu_strategy(run)
    sync = {"average": "gradients", "every": 1, "devices": strategy.num_replicas_in_sync, "device": device}
    return _train(run, strategy, sync)


def _tpu_strategy(run: Run) -> tuple[tf.distribute.Strategy, str]:
    """The strategy for the best device there is, and the kind of device."""
    # Before anything starts TensorFlow, after which it could not be set.
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    address = _tpu_address()
    if address is None:
        reason = "no TPU here: neither TPU_NAME nor /dev/accel*"
    else:
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(address)
            return tf.distribute.TPUStrategy(resolver), "TPU"
        except (ValueError, RuntimeError, tf.errors.OpError, OSError) as error:
            reason = f"the TPU {address} does not answer: {str(error).splitlines()[0]}"
    if gpus := tf.config.list_physical_devices("GPU"):
        names = [f"/GPU:{number}" for number in range(len(gpus))]
        run.progress.say(f"tpu: {reason}; training on {len(names)} GPUs instead")
        return tf.distribute.MirroredStrategy(names), "GPU"
    devices.start_tensorflow()
    run.progress.say(f"tpu: {reason}, no GPU either; training on the CPU instead")
    return tf.distribute.OneDeviceStrategy("/CPU:0"), "CPU"


def _tpu_address() -> str | None:
    """Where to look for a TPU. Asking further afield would wait for an answer from a cloud we are not in."""
    local = "local" if any(Path("/dev").glob("accel*")) else None
    return os.environ.get("TPU_NAME") or local


def _train(run: Run, strategy: tf.distribute.Strategy, sync: dict[str, Any]) -> RunRecord:
    """Trains under ``strategy``, on each rank of ``run.world`` with the examples of that rank.

    Args:
        run: The frame: config, data, records.
        strategy: Of one process, or of all ranks.
        sync: What the record says about it.
    """
    config, world = run.config, run.world
    one_example_a_rank(config.batch_size, world.size)
    examples, test_examples = run.read("train"), run.read("test")
    with world.together():
        # Tried first where nothing waits for other ranks, so that a mistake on one of them is heard of.
        zoo.build(config.model, run.input_shape, run.num_classes, seed=config.seed, dtype=config.dtype)
        optimizers.build(config.optimizer, config.learning_rate)
    with strategy.scope():
        model = zoo.build(
            config.model, run.input_shape, run.num_classes, seed=config.seed, dtype=config.dtype
        )
        optimizer = optimizers.build(config.optimizer, config.learning_rate)
        optimizer.build(model.trainable_variables)
    loop = _Loop(strategy, model, optimizer, world)
    evaluator = Evaluator(
        lambda images: model(images, training=False), test_examples, from_logits=loop.from_logits
    )
    run.lap("build")
    _warm_up(loop, run, examples)
    evaluator.trace()
    session = Session(run, KerasState(model, optimizer, strategy.scope))
    session.begin()
    run.start(model.name, model.count_params())
    batches: Iterator[Any] | None = None
    with session.training():
        while session.position.epoch <= config.epochs:
            try:
                epoch = lay_out(session, examples)
                if batches is None or epoch.leg or epoch.first:
                    batches = loop.batches(epoch, config.seed, world.rank)
                rest = run_chunks(
                    loop.steps(batches), epoch.steps, world, session, weights=loop.weights, first=epoch.first
                )
                if epoch.leg:
                    batches = None  # these ended with the epoch
                loop.average_statistics(len(examples))
                check_equal(world, [*loop.weights(), *loop.statistics()], when=f"after epoch {epoch.number}")
                session.end_epoch(run.end_epoch(epoch.number, session.whole(rest), evaluator.evaluate))
            except DivergedError as error:
                session.roll_back(error)
                batches = None
    return session.finish(
        optimizer=optimizer,
        sync=sync,
        weights_sha256=digest_of(model),
    )


def _warm_up(loop: _Loop, run: Run, examples: Examples) -> None:
    """Traces the step by running one, and puts all back as it was."""
    config, world = run.config, run.world
    steps = plan_steps(run.num_train, config.batch_size, rank=world.rank, size=world.size)
    order = epoch_order(config.seed, 1, world.rank, len(examples))
    first = Epoch(number=1, leg=0, examples=examples, order=order, steps=steps, first=0)
    variables = [*loop.model.variables, *loop.optimizer.variables]
    before = [np.array(variable.numpy()) for variable in variables]
    loop.steps(loop.batches(first, config.seed, world.rank))(0, 1)
    with loop.strategy.scope():
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


class _Loop:
    """Args: a strategy, a model and its built optimizer, made in its scope, and the ranks."""

    def __init__(
        self, strategy: tf.distribute.Strategy, model: keras.Model, optimizer: keras.Optimizer, world: World
    ) -> None:
        self.strategy, self.model, self.optimizer = strategy, model, optimizer
        self._world = world
        self.from_logits = not zoo.returns_probabilities(model)

    def weights(self) -> list[np.ndarray]:
        """The trainable weights of this process's first replica."""
        return [variable.numpy() for variable in self.model.trainable_variables]

    def statistics(self) -> list[np.ndarray]:
        """BatchNorm's moving statistics, the mean over this process's replicas."""
        return [
            np.mean([part.numpy() for part in self.strategy.experimental_local_results(v.value)], axis=0)
            for v in self._moving()
        ]

    def average_statistics(self, num_examples: int) -> None:
        """Makes them the same on all replicas of all ranks; in training each follows its own data."""
        if not self._moving() or self.strategy.num_replicas_in_sync == 1:
            return
        values = mean_over_ranks(self._world, self.statistics(), num_examples)
        with self.strategy.scope():
            for variable, value in zip(self._moving(), values, strict=True):
                variable.assign(value)

    def _moving(self) -> list[keras.Variable]:
        return [v for v in self.model.non_trainable_variables if keras.backend.is_float_dtype(v.dtype)]

    def batches(self, epoch: Epoch, seed: int, rank: int) -> Iterator[Any]:
        """The rank's batches, in parts for its replicas: what is left of ``epoch``, then epoch after epoch.

        One iterator for all epochs, as TensorFlow may block for seconds when one is dropped. Of an epoch that
        others have begun, what is left is of other examples; those batches end with it.
        """
        images, labels = as_tensor(epoch.examples.images), as_tensor(epoch.examples.labels)
        steps, count = epoch.steps, len(epoch.examples)
        begins, sizes = (tf.constant(array[:, 0, 0]) for array in (steps.begins, steps.sizes))
        # The optimizer adds up the gradients of all ranks, where the suite's own all-reduce takes their mean.
        scales = tf.constant(steps.scales[:, 0] / self._world.size)
        num_replicas = self.strategy.num_replicas_in_sync // self._world.size

        def one_epoch(number: tf.Tensor) -> tf.data.Dataset:
            order = tf.numpy_function(
                lambda n: epoch_order(seed, int(n), rank, count, epoch.leg if n == epoch.number else 0),
                [number],
                tf.int32,
                stateful=False,
            )
            first = tf.where(number == epoch.number, tf.constant(epoch.first, tf.int64), 0)

            def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
                some = tf.slice(order, begins[step][tf.newaxis], sizes[step][tf.newaxis])
                # Even parts for the replicas: what is added has no weight, but none of them is empty, of
                # which BatchNorm would make NaN.
                num_added = -sizes[step] % num_replicas
                weights = tf.concat([tf.fill(sizes[step][tf.newaxis], scales[step]), tf.zeros(num_added)], 0)
                some = tf.concat([some, tf.repeat(some[:1], num_added)], 0)
                return tf.gather(images, some), tf.gather(labels, some), weights

            return tf.data.Dataset.range(first, len(steps)).map(batch)

        numbers = tf.data.Dataset.counter(epoch.number)
        dataset = (numbers.take(1) if epoch.leg else numbers).flat_map(one_epoch).prefetch(2)
        options = tf.data.Options()
        options.autotune.enabled = False
        # Each rank has read its own shard already.
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        dataset = dataset.with_options(options)
        return iter(self._distributed(dataset))

    def _distributed(self, dataset: tf.data.Dataset) -> Any:
        if self._world.size > 1:
            return self.strategy.distribute_datasets_from_function(lambda _: dataset)
        return self.strategy.experimental_distribute_dataset(dataset)

    def steps(self, batches: Iterator[Any]) -> Any:
        """A function of two step numbers that trains as many steps as lie between them; as ``run_chunks``."""

        def run_steps(first: int, stop: int) -> tuple[float, float]:
            loss, correct = self._run(batches, tf.constant(stop - first))
            return float(loss), float(correct)

        return run_steps

    @tf.function(autograph=False, reduce_retracing=True)
    def _run(self, batches: Iterator[Any], count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        strategy = self.strategy

        def body(step: tf.Tensor, loss: tf.Tensor, correct: tf.Tensor) -> tuple[tf.Tensor, ...]:
            losses, hits = strategy.run(self._step, args=next(batches))
            # Of this process alone: its sums meet those of other ranks at the end of the epoch.
            local = strategy.experimental_local_results
            return step + 1, loss + tf.add_n(local(losses)), correct + tf.add_n(local(hits))

        _, loss, correct = tf.while_loop(
            lambda step, *_: step < count, body, (0, 0.0, 0.0), parallel_iterations=1
        )
        return loss, correct

    def _step(self, images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One step of one replica. Returns the sums of the loss and the hits over its examples."""
        labels = tf.cast(labels, tf.int32)
        with tf.GradientTape() as tape:
            outputs = self.model(as_input(images), training=True)
            losses = losses_of(outputs, labels, from_logits=self.from_logits)
            loss = tf.reduce_sum(losses * weights)
        variables = [variable.value for variable in self.model.trainable_variables]
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))
        counts = tf.sign(weights)
        hits = tf.cast(tf.argmax(outputs, 1, output_type=tf.int32) == labels, tf.float32)
        return tf.reduce_sum(losses * counts), tf.reduce_sum(hits * counts)
