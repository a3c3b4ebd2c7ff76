"""A custom training loop under a ``tf.distribute`` strategy: custom_dataset, multiworker and tpu.

A distributed dataset gives each replica its part of a batch, ``strategy.run`` runs the step on each, and the
gradients are summed. The loss of each part carries its share of the global batch, so that parts of any size
add up to the gradient of one process.
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
from mpi_train.models.flat import is_seed
from mpi_train.runs import epochs
from mpi_train.runs.config import RanksConfig, TrainConfig, one_example_a_rank
from mpi_train.runs.keras_state import KerasState, copies_of, restore
from mpi_train.runs.record import RunRecord
from mpi_train.runs.resumable import ResumableRun
from mpi_train.runs.run import Run
from mpi_train.runtime import addresses, devices, watchdog
from mpi_train.runtime.aligned import as_tensor
from mpi_train.runtime.world import World
from mpi_train.strategies.config import DevicesConfig
from mpi_train.strategies.custom_loop import build
from mpi_train.strategies.keras_fit import pipeline_options
from mpi_train.strategies.replicated import require_in_scope, separate_seeds, values_of
from mpi_train.training.evaluation import Evaluator
from mpi_train.training.inputs import as_input, as_target
from mpi_train.training.loop import RunSteps, run_chunks
from mpi_train.training.objective import Objective
from mpi_train.training.replicas import check_equal, mean_over_ranks
from mpi_train.training.steps import Steps
from mpi_train.training.trainer import weighted


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
        build(run, examples)
    with strategy.scope():
        objective = build(run, examples)
        model = objective.model
        require_in_scope(model, run)
        objective.optimizer.build(model.trainable_variables)
        separate_seeds(objective.states, world.rank * (strategy.num_replicas_in_sync // world.size))
    loop = _Loop(strategy, objective, run, examples)
    evaluator = Evaluator(objective, values_of(objective), test_examples)
    run.lap("build")
    loop.warm_up()
    evaluator.trace()

    def train_epoch(resumable: ResumableRun) -> None:
        steps, first = epochs.begin_epoch(resumable)
        epoch = resumable.position.epoch
        run_steps = loop.prepare(epoch, steps, first)
        rest = run_chunks(run_steps, len(steps), world, resumable, weights=loop.weights, first=first)
        loop.average_statistics(len(examples))
        check_equal(world, [*loop.weights(), *loop.statistics()], when=f"after epoch {epoch}")
        resumable.end_epoch(rest, evaluator.evaluate)

    def export() -> keras.Model:
        with strategy.scope():
            objective.optimizer.finalize_variable_values(model.trainable_variables)
        return model

    return epochs.train_epochs(
        run,
        KerasState(objective, strategy.scope),
        train_epoch,
        objective=objective,
        export=export,
        sync=sync,
        layout=layout,
    )


class _Loop:
    """Training of a model and its built optimizer, both made in the scope of ``strategy``."""

    def __init__(
        self, strategy: tf.distribute.Strategy, objective: Objective, run: Run, examples: Examples
    ) -> None:
        self.strategy, self.objective, self.model = strategy, objective, objective.model
        self._run_of, self._examples = run, examples
        self._moving = [
            v for v in objective.states if keras.backend.is_float_dtype(v.dtype) and not is_seed(v)
        ]
        self._num_local = strategy.num_replicas_in_sync // run.world.size
        self._batches: Iterator[Any] | None = None
        self._next_epoch = 0
        inner = getattr(objective.optimizer, "inner_optimizer", objective.optimizer)
        inner._all_reduce_sum_gradients = list  # they come as sums, see ``_step``

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
            means = mean_over_ranks(self._run_of.world, self.statistics(), num_examples)
            with self.strategy.scope():
                restore(self._moving, means)

    def warm_up(self) -> None:
        """Trace the step by running one, and restore all variables."""
        variables = [
            *self.model.trainable_variables,
            *self.objective.states,
            *self.objective.optimizer.variables,
        ]
        before = copies_of(variables)
        self._run(self._iterator(1, epochs.steps_of(self._run_of, 1), 0), tf.constant(1))
        with self.strategy.scope():
            restore(variables, before)

    def prepare(self, epoch: int, steps: Steps, first: int) -> RunSteps:
        """Return the function that trains steps of an epoch, of which ``first`` are finished.

        One iterator serves all epochs, because TensorFlow may block for seconds when one is dropped. A new
        one is needed after a rollback, and for the rest of an epoch.
        """
        if self._batches is None or epoch != self._next_epoch or first:
            self._batches = self._iterator(epoch, steps, first)
        batches, num_steps = self._batches, len(steps)
        self._next_epoch = 0

        def run_steps(first: int, stop: int) -> tuple[float, np.ndarray, int]:
            loss, *metrics = self._run(batches, tf.constant(stop - first))
            if stop == num_steps:
                self._next_epoch = epoch + 1
            return float(loss), self.objective.growth(metrics), steps.num_examples(first, stop)

        return run_steps

    def _iterator(self, epoch: int, steps: Steps, first: int) -> Iterator[Any]:
        """Return the parts of the replicas: those of the rest of ``epoch``, then those of later epochs."""
        images, labels = tf.nest.map_structure(as_tensor, (self._examples.images, self._examples.labels))
        num_parts, num_steps = self._num_local, len(steps)

        def arrays_of(number: np.ndarray) -> tuple[np.ndarray, ...]:
            own = epochs.steps_of(self._run_of, int(number), num_parts)
            parts = (own.begins[..., 0], own.sizes[..., 0], own.shares)
            return own.order, *(array.ravel() for array in parts), np.repeat(own.batches, num_parts)

        def one_epoch(number: tf.Tensor) -> tf.data.Dataset:
            types = [tf.int32, tf.int32, tf.int32, tf.float32, tf.float32]
            arrays = tf.numpy_function(arrays_of, [number], types, stateful=False)
            order, *layout = (tf.ensure_shape(array, [None]) for array in arrays)
            start = tf.where(number == epoch, tf.constant(first * num_parts, tf.int64), 0)

            def part(index: tf.Tensor) -> tuple[Any, Any, tf.Tensor, tf.Tensor]:
                begin, size, share, total = (array[index] for array in layout)
                some = tf.slice(order, begin[tf.newaxis], size[tf.newaxis])
                x, y = tf.nest.map_structure(lambda array: tf.gather(array, some), (images, labels))
                return x, y, share, total

            return tf.data.Dataset.range(start, num_steps * num_parts).map(part)

        dataset = tf.data.Dataset.counter(epoch).flat_map(one_epoch).prefetch(2 * num_parts)
        dataset = dataset.with_options(pipeline_options())
        # Each replica takes an element in turn: the parts may have any size.
        return iter(self.strategy.distribute_datasets_from_function(lambda _: dataset))

    @tf.function(autograph=False, reduce_retracing=True)
    def _run(self, batches: Iterator[Any], count: tf.Tensor) -> list[tf.Tensor]:
        """Run the next ``count`` steps; return this process's part of the loss and the metrics."""
        strategy = self.strategy
        initial = [tf.constant(value) for value in self.objective.initial]

        def body(step: tf.Tensor, loss: tf.Tensor, *metrics: tf.Tensor) -> tuple[tf.Tensor, ...]:
            # Sums of this process alone; they meet those of other ranks at the end of the epoch.
            losses, grown = strategy.run(self._step, args=next(batches))
            local = strategy.experimental_local_results
            new = [m + tf.add_n(local(g)) for m, g in zip(metrics, grown, strict=True)]
            return step + 1, loss + tf.add_n(local(losses)), *new

        _, *last = tf.while_loop(
            lambda step, *_: step < count, body, (0, 0.0, *initial), parallel_iterations=1
        )
        return last

    def _step(
        self, images: Any, labels: Any, share: tf.Tensor, total: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Run one step of one replica; return its part of the loss, and the growth of the metrics.

        Args:
            images, labels: Examples of this replica.
            share, total: Share of the global batch that they are, 0 if they do not count, and its size.
        """
        optimizer, variables = self.objective.optimizer, self.model.trainable_variables
        x, y = tf.nest.map_structure(as_input, images), tf.nest.map_structure(as_target, labels)
        initial = [tf.constant(value) for value in self.objective.initial]
        with tf.GradientTape() as tape:
            result = self.objective.forward_in_place(x, y, initial)
            loss, upstream = weighted(result, share)
        gradients = tape.gradient(
            loss, [v.value for v in variables], output_gradients=upstream * optimizer.scale_loss(1.0)
        )
        # Summed here and not by Keras, which would clip each replica's gradient by itself.
        replica = tf.distribute.get_replica_context()
        known = [gradient for gradient in gradients if gradient is not None]
        summed = iter(replica.all_reduce(tf.distribute.ReduceOp.SUM, known))
        gradients = [None if gradient is None else next(summed) for gradient in gradients]
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        grown = [
            new - old
            for new, old in zip(self.objective.counted(share, result.metrics, initial), initial, strict=True)
        ]
        return total * loss * upstream, grown
