"""The compiled training step: many steps as one graph, over one or several devices of this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import Averaging, NoAveraging
from mpi_train.data.examples import Examples
from mpi_train.models.flat import FlatModel
from mpi_train.models.optimizers import WarmedUp, update_for
from mpi_train.runtime.aligned import as_tensor
from mpi_train.runtime.world import World
from mpi_train.training.inputs import as_input, as_target
from mpi_train.training.loop import ChunkCallback, RunSteps, run_chunks
from mpi_train.training.objective import Forward, Objective
from mpi_train.training.steps import Steps
from mpi_train.training.totals import EpochTotals

Batch: TypeAlias = tuple[Any, Any, tf.Tensor]
"""Images, labels, and share of the global batch, see ``Steps``."""

_SEEDS_APART = 7_368_787
"""Difference between the seeds of the parts of a step; no multiple of that between ranks."""


class _Data:
    """Images and labels on the device that trains, as variables: a loop copies tensors at each step."""

    def __init__(self, examples: Examples, device: str) -> None:
        def variable(array: np.ndarray) -> tf.Variable:
            # On the CPU this shares the memory of the array; on a GPU it is a copy.
            return tf.Variable(as_tensor(array), trainable=False)

        with tf.device(device):
            self._variables = tf.nest.map_structure(variable, (examples.images, examples.labels))

    def take(self, indices: tf.Tensor, device: str) -> tuple[Any, Any]:
        """Return the images and labels at ``indices``, inside a graph."""

        def gather(variable: tf.Variable) -> tf.Tensor:
            # On a GPU only the gather from a variable has a kernel for bytes. On the CPU it would first copy
            # the variable, whose memory is shared with NumPy.
            return tf.gather(variable if "GPU" in variable.device else variable.read_value(), indices)

        with tf.device(device):
            images, labels = tf.nest.map_structure(gather, self._variables)
            return images, labels


class Trainer:
    """Training of a model on the examples of this process.

    Args:
        flat: The model, with its weights on the first of ``devices``.
        optimizer: A new Keras optimizer.
        examples: This process's part of the training set.
        objective: Loss and metrics of the model.
        averaging: Averaging policy over the ranks.
        devices: Devices over which each step's examples are split evenly. A device named several times
            computes its parts one after another.
        warmup: Fraction of the final learning rate at the start, and steps until the final one.
    """

    def __init__(
        self,
        flat: FlatModel,
        optimizer: keras.Optimizer,
        examples: Examples,
        objective: Objective,
        *,
        averaging: Averaging | None = None,
        devices: Sequence[str] = ("/CPU:0",),
        warmup: tuple[float, int] | None = None,
    ) -> None:
        self.devices = tuple(devices)
        self.flat, self.objective = flat, objective
        self.update = update_for(optimizer, flat, self.devices[0])
        if warmup is not None:
            self.update = WarmedUp(self.update, *warmup)
        self.averaging = averaging or NoAveraging()
        self.averaging.attach(self.update)
        self._data = _Data(examples, self.devices[0])
        self.examples = examples

    @property
    def variables(self) -> list[tf.Variable]:
        """Variables that all ranks must have in common when training starts."""
        return [self.flat.weights.value, *self.flat.common_states, *self.update.variables]

    def export(self) -> keras.Model:
        """Return the compiled Keras model with the trained weights and the state of the optimizer."""
        self.update.finalize()
        model, whole = self.flat.export(), self.objective.whole
        if whole is not model:
            whole.set_weights(model.get_weights())
        whole.optimizer = self.update.export(whole.trainable_variables)
        return whole

    def warm_up(self, steps: Steps) -> None:
        """Run the graphs of ``steps`` once and undo it, on all ranks together, before any clock starts."""
        variables = [*self.variables, *self.flat.seeds, *self.averaging.variables.values()]
        before = [np.array(variable.numpy()) for variable in variables]
        run = self.prepare(steps)
        run(0, 1)
        run(len(steps) - 1, len(steps))
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)

    def train_epoch(
        self, steps: Steps, world: World, callback: ChunkCallback | None = None, *, first: int = 0
    ) -> EpochTotals:
        """Run the steps of one epoch, from step ``first`` on, on all ranks together.

        Args:
            steps, first: Layout of the examples in steps, and number of finished ones.
            world, callback: The ranks, and the callback between chunks of steps.
        """
        return run_chunks(
            self.prepare(steps),
            len(steps),
            world,
            callback or ChunkCallback(),
            weights=lambda: [self.flat.weights.numpy()],
            averaging=self.averaging,
            first=first,
        )

    def prepare(self, steps: Steps) -> RunSteps:
        """Return the function that trains steps of an epoch."""
        parts = steps.regular_parts
        size, num_ranks = float(steps.batches[0]), steps.num_ranks
        with tf.device("/CPU:0"):
            rows = tf.zeros([0, 0], tf.int32) if parts is None else tf.constant(steps.regular_rows())
            arrays = (steps.order, steps.begins, steps.sizes, steps.shares, steps.batches)
            layout = [tf.constant(array) for array in arrays]

        def run(first: int, stop: int) -> tuple[float, np.ndarray, int]:
            # The last step is often smaller. A graph with known sizes runs fewer kernels.
            turn = first if parts is None else min(stop, len(steps) - 1)
            loss, metrics = 0.0, np.zeros(sum(value.size for value in self.objective.initial))
            if first < turn:
                own = {"parts": parts, "size": size, "num_ranks": num_ranks}
                some_loss, *some = self._run_regular(rows, tf.constant(first), tf.constant(turn), **own)
                loss, metrics = loss + float(some_loss), metrics + self.objective.growth(some)
            if turn < stop:
                ends = tf.constant(turn), tf.constant(stop)
                some_loss, *some = self._run(layout, *ends, num_ranks=num_ranks)
                loss, metrics = loss + float(some_loss), metrics + self.objective.growth(some)
            return loss, metrics, steps.num_examples(first, stop)

        return run

    @tf.function(autograph=False, reduce_retracing=True)
    def _run_regular(
        self,
        rows: tf.Tensor,
        first: tf.Tensor,
        stop: tf.Tensor,
        *,
        parts: tuple[tuple[int, float], ...],
        size: float,
        num_ranks: int,
    ) -> list[tf.Tensor]:
        """Run steps ``first`` to ``stop``, none of them the last, given size and share of their parts."""
        sizes = [size for size, _ in parts]

        def parts_of(step: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
            row = tf.gather(rows, step)
            row.set_shape([sum(sizes)])
            pieces = [row] if len(parts) == 1 else tf.split(row, sizes)
            return [(piece, tf.constant(share)) for piece, (_, share) in zip(pieces, parts, strict=True)]

        def batch(_: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return tf.constant(size), tf.constant(value=False)

        return self._loop(first, stop, parts_of, batch, num_ranks)

    @tf.function(autograph=False, reduce_retracing=True)
    def _run(
        self, layout: Sequence[tf.Tensor], first: tf.Tensor, stop: tf.Tensor, *, num_ranks: int
    ) -> list[tf.Tensor]:
        """Run any steps ``first`` to ``stop``."""
        order, begins, sizes, shares, batches = layout

        def parts_of(step: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
            begin, size, share = (tf.gather(array, step) for array in (begins, sizes, shares))
            parts = range(len(self.devices))
            return [(tf.slice(order, begin[part], size[part]), share[part]) for part in parts]

        def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return tf.gather(batches, step), step + 1 == tf.shape(batches)[0]

        return self._loop(first, stop, parts_of, batch, num_ranks)

    def _loop(
        self,
        first: tf.Tensor,
        stop: tf.Tensor,
        parts_of: Callable[[tf.Tensor], list[tuple[tf.Tensor, tf.Tensor]]],
        batch: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
        num_ranks: int,
    ) -> list[tf.Tensor]:
        """Run steps ``first`` to ``stop``.

        Args:
            first, stop: Numbers of steps.
            parts_of: Function that returns indices and share of each part of a step.
            batch: Function that returns the size of the global batch, and if the step is the epoch's last.
            num_ranks: Ranks over which ``averaging`` takes the mean.

        Returns:
            This rank's part of the loss, summed over examples, and the values of the metrics.
        """

        def body(step: tf.Tensor, loss: tf.Tensor, *metrics: tf.Tensor) -> tuple[tf.Tensor, ...]:
            with tf.device("/CPU:0"):
                parts = parts_of(step)
                size, is_last = batch(step)
            batches = [
                (*self._data.take(indices, device), share)
                for (indices, share), device in zip(parts, self.devices, strict=True)
            ]
            step_loss, new_metrics, gradient = self.gradient(batches, list(metrics), num_ranks)
            self.update.apply(self.averaging.gradient(gradient))
            self.averaging.weights(self.flat.weights, step, is_last)
            return step + 1, loss + size * step_loss, *new_metrics

        initial = [tf.constant(value) for value in self.objective.initial]
        _, *last = tf.while_loop(
            lambda step, *_: step < stop, body, (first, 0.0, *initial), parallel_iterations=1
        )
        return last

    def gradient(
        self, batches: Sequence[Batch], metrics: list[tf.Tensor], num_ranks: int
    ) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor]:
        """Compute the gradient of one step, inside a graph, and update the states.

        Args:
            batches: Examples of each part of the step.
            metrics: Values of the metrics before the step.
            num_ranks: Ranks whose gradients are averaged.

        Returns:
            This rank's part of the mean loss of the global batch, float32 (), the metrics after the step, and
            the gradient of this part, float32 (num_padded,), times ``num_ranks``.
        """
        losses: list[tf.Tensor] = []
        gradients: list[tf.Tensor] = []
        results: list[Forward] = []
        in_turn = len(set(self.devices)) < len(self.devices)
        for part, (device, batch) in enumerate(zip(self.devices, batches, strict=True)):
            # One after another, each part adds to the sum before it: memory holds one gradient at a time.
            before = gradients[-1:] if in_turn else []
            with tf.device(device), tf.control_dependencies(before):
                loss, gradient, result = self._part_gradient(*batch, metrics, num_ranks, part)
                losses.append(loss)
                gradients.append(sum(before, gradient))
                results.append(result)
                metrics = self.objective.counted(batch[2], result.metrics, metrics)
        self.update_states(results)
        return tf.add_n(losses), metrics, gradients[-1] if in_turn else tf.add_n(gradients)

    def update_states(self, results: Sequence[Forward]) -> None:
        """Assign the states after a step, given the result of each of its parts, and assigned weights."""
        for variable, values in zip(
            self.flat.states, zip(*(r.states for r in results), strict=True), strict=True
        ):
            variable.assign(_mean(values))
        if self.objective.assigns:
            assigned = zip(*([versions[-1] for versions in r.weights] for r in results), strict=True)
            self.flat.weights.assign(self.flat.concat([_mean(values) for values in assigned]))

    def _part_gradient(
        self,
        images: Any,
        labels: Any,
        share: tf.Tensor,
        metrics: Sequence[tf.Tensor],
        num_ranks: int,
        part: int,
    ) -> tuple[tf.Tensor, tf.Tensor, Forward]:
        x, y = tf.nest.map_structure(as_input, images), tf.nest.map_structure(as_target, labels)
        pieces = self.flat.slices(tf.identity(self.flat.weights.value))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(pieces)
            states = self.flat.part_states(part * _SEEDS_APART)
            result = self.objective.forward(x, y, pieces, states, metrics, training=True, tape=tape)
            loss, upstream = weighted(result, share)
        # The share enters where the chain rule begins, which costs no kernel.
        gradients = self.gradients(tape, loss, result, upstream * self.update.optimizer.scale_loss(num_ranks))
        if len(self.devices) == 1:
            self.averaging.layers(gradients)
        return loss * upstream, self.flat.concat(gradients), result

    @staticmethod
    def gradients(
        tape: tf.GradientTape, target: tf.Tensor, result: Forward, upstream: tf.Tensor
    ) -> list[tf.Tensor]:
        """Return the gradient of each weight: the sum over all values that it had during the call."""
        sources = result.weights
        found = tape.gradient(target, sources, output_gradients=upstream, unconnected_gradients="zero")
        return [versions[0] if len(versions) == 1 else tf.add_n(versions) for versions in found]


def weighted(result: Forward, share: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return a loss and its factor, whose product is this part of the loss of the global batch.

    A mean over examples counts by the ``share`` of the global batch, a sum over examples counts whole.
    """
    if result.total is None:
        return result.mean, share
    return share * result.mean + tf.sign(share) * result.total, tf.constant(1.0)


def _mean(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Combine a state after each part of a step: the mean of statistics, the first of seeds and counters."""
    return tf.add_n(values) / len(values) if values[0].dtype.is_floating and len(values) > 1 else values[0]
