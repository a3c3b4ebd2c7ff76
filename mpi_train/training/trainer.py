"""The compiled training step: many steps as one graph, over one or several devices of this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import keras
import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import Averaging, NoAveraging
from mpi_train.data.examples import Examples
from mpi_train.models.flat import FlatModel
from mpi_train.models.optimizers import WarmedUp, update_for
from mpi_train.models.zoo import returns_probabilities
from mpi_train.runtime.aligned import as_tensor
from mpi_train.runtime.world import World
from mpi_train.training.loop import ChunkCallback, RunSteps, run_chunks
from mpi_train.training.losses import as_input, losses_of, num_correct
from mpi_train.training.steps import Steps
from mpi_train.training.totals import EpochTotals

Batch: TypeAlias = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
"""Images, labels, and scale of the loss, see ``Steps``."""


class _Data:
    """Images and labels on the device that trains, as variables: a loop copies tensors at each step."""

    def __init__(self, examples: Examples, device: str) -> None:
        # On the CPU this shares the memory of the arrays; on a GPU it is a copy.
        tensors = as_tensor(examples.images), as_tensor(examples.labels)
        with tf.device(device):
            self._variables = [
                tf.Variable(tensor, trainable=False, shape=[None, *tensor.shape[1:]]) for tensor in tensors
            ]

    def assign(self, examples: Examples) -> None:
        """Replace the examples."""
        for variable, array in zip(self._variables, (examples.images, examples.labels), strict=True):
            variable.assign(as_tensor(array))

    def take(self, indices: tf.Tensor, device: str) -> tuple[tf.Tensor, ...]:
        """Return the images and labels at ``indices``, inside a graph."""
        with tf.device(device):
            # On a GPU only the gather from a variable has a kernel for bytes. On the CPU it would first copy
            # the variable, whose memory is shared with NumPy.
            whole = [v if "GPU" in v.device else v.read_value() for v in self._variables]
            return tuple(tf.gather(each, indices) for each in whole)


class Trainer:
    """Training of a model on the examples of this process.

    Args:
        flat: The model, with its weights on the first of ``devices``.
        optimizer: A new Keras optimizer.
        examples: This process's part of the training set.
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
        *,
        averaging: Averaging | None = None,
        devices: Sequence[str] = ("/CPU:0",),
        warmup: tuple[float, int] | None = None,
    ) -> None:
        self.devices = tuple(devices)
        self.flat = flat
        self.update = update_for(optimizer, flat, self.devices[0])
        if warmup is not None:
            self.update = WarmedUp(self.update, *warmup)
        self.averaging = averaging or NoAveraging()
        self.averaging.attach(self.update)
        self._from_logits = not returns_probabilities(flat.model)
        self._data = _Data(examples, self.devices[0])
        self.examples = examples

    def feed(self, examples: Examples) -> None:
        """Train on these ``examples`` from now on."""
        self.examples = examples
        self._data.assign(examples)

    @property
    def variables(self) -> list[tf.Variable]:
        """Variables that all ranks must have in common when training starts."""
        return [self.flat.weights.value, *self.flat.moving_statistics, *self.update.variables]

    def warm_up(self, order: np.ndarray, steps: Steps) -> None:
        """Run the graphs of ``steps`` once and undo it, on all ranks together, before any clock starts."""
        variables = [*self.variables, *self.flat.states, *self.averaging.variables.values()]
        before = [np.array(variable.numpy()) for variable in variables]
        run = self.prepare(order, steps)
        run(0, 1)
        run(len(steps) - 1, len(steps))
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)

    def train_epoch(
        self,
        order: np.ndarray,
        steps: Steps,
        world: World,
        callback: ChunkCallback | None = None,
        *,
        first: int = 0,
    ) -> EpochTotals:
        """Run the steps of one epoch, from step ``first`` on, on all ranks together.

        Args:
            order: int32 (n,): the rank's examples in the order of this epoch.
            steps, first: Layout of the examples in steps, and number of finished ones.
            world, callback: The ranks, and the callback between chunks of steps.
        """
        return run_chunks(
            self.prepare(order, steps),
            len(steps),
            world,
            callback or ChunkCallback(),
            weights=lambda: [self.flat.weights.numpy()],
            averaging=self.averaging,
            first=first,
        )

    def prepare(self, order: np.ndarray, steps: Steps) -> RunSteps:
        """Return the function that trains steps of an epoch; arguments as for ``train_epoch``."""
        parts = steps.regular_parts
        with tf.device("/CPU:0"):
            rows = tf.zeros([0, 0], tf.int32) if parts is None else tf.constant(steps.regular_rows(order))
            layout = [tf.constant(array) for array in (order, steps.begins, steps.sizes, steps.scales)]

        def run(first: int, stop: int) -> tuple[float, float, int]:
            # The last step is often smaller. A graph with known sizes runs fewer kernels.
            turn = first if parts is None else min(stop, len(steps) - 1)
            totals = np.zeros(2)
            if first < turn:
                totals += self._run_regular(rows, tf.constant(first), tf.constant(turn), parts=parts)
            if turn < stop:
                totals += self._run(layout, tf.constant(turn), tf.constant(stop))
            loss, correct = totals.tolist()
            return loss, correct, steps[first:stop].num_examples

        return run

    @tf.function(autograph=False, reduce_retracing=True)
    def _run_regular(
        self, rows: tf.Tensor, first: tf.Tensor, stop: tf.Tensor, *, parts: tuple[tuple[int, float], ...]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Run steps ``first`` to ``stop``, none of them the last, given size and scale of their parts."""
        sizes = [size for size, _ in parts]

        def parts_of(step: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
            row = tf.gather(rows, step)
            row.set_shape([sum(sizes)])
            pieces = [row] if len(parts) == 1 else tf.split(row, sizes)
            return [(piece, tf.constant(scale)) for piece, (_, scale) in zip(pieces, parts, strict=True)]

        return self._loop(first, stop, parts_of, lambda _: tf.constant(value=False))

    @tf.function(autograph=False, reduce_retracing=True)
    def _run(
        self, layout: Sequence[tf.Tensor], first: tf.Tensor, stop: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Run any steps ``first`` to ``stop``."""
        order, begins, sizes, scales = layout

        def parts_of(step: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
            begin, size, scale = (tf.gather(array, step) for array in (begins, sizes, scales))
            parts = range(len(self.devices))
            return [(tf.slice(order, begin[part], size[part]), scale[part]) for part in parts]

        return self._loop(first, stop, parts_of, lambda step: step + 1 == tf.shape(scales)[0])

    def _loop(
        self,
        first: tf.Tensor,
        stop: tf.Tensor,
        parts_of: Callable[[tf.Tensor], list[tuple[tf.Tensor, tf.Tensor]]],
        is_last: Callable[[tf.Tensor], tf.Tensor],
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Run steps ``first`` to ``stop``, given indices and scale of each part of a step."""

        def body(step: tf.Tensor, loss: tf.Tensor, correct: tf.Tensor) -> tuple[tf.Tensor, ...]:
            with tf.device("/CPU:0"):
                parts = parts_of(step)
            batches = [
                (*self._data.take(indices, device), scale)
                for (indices, scale), device in zip(parts, self.devices, strict=True)
            ]
            step_loss, step_correct, gradient = self.gradient(batches)
            self.update.apply(self.averaging.gradient(gradient))
            self.averaging.weights(self.flat.weights, step, is_last(step))
            return step + 1, loss + step_loss, correct + step_correct

        _, loss, correct = tf.while_loop(
            lambda step, *_: step < stop, body, (first, 0.0, 0.0), parallel_iterations=1
        )
        return loss, correct

    def gradient(self, batches: Sequence[Batch]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Compute the gradient of one step, inside a graph, and update BatchNorm's statistics.

        Returns:
            Sums of the loss and of the correct predictions, float32 (), and the gradient of the scaled loss,
            float32 (num_padded,).
        """
        parts: list[tuple[tf.Tensor, tf.Tensor, tf.Tensor, list[tf.Tensor]]] = []
        in_turn = len(set(self.devices)) < len(self.devices)
        for device, batch in zip(self.devices, batches, strict=True):
            # One after another, each part adds to the sum before it: memory holds one gradient at a time.
            before = [parts[-1][2]] if in_turn and parts else []
            with tf.device(device), tf.control_dependencies(before):
                loss, correct, gradient, states = self._part_gradient(*batch)
                parts.append((loss, correct, sum(before, gradient), states))
        losses, corrects, gradients, new_states = zip(*parts, strict=True)
        for variable, state in zip(self.flat.states, mean_states(new_states), strict=True):
            variable.assign(state)
        return tf.add_n(losses), tf.add_n(corrects), gradients[-1] if in_turn else tf.add_n(gradients)

    def _part_gradient(
        self, images: tf.Tensor, labels: tf.Tensor, scale: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        labels = tf.cast(labels, tf.int32)
        pieces = self.flat.slices(tf.identity(self.flat.weights.value))
        states = [tf.identity(state) for state in self.flat.states]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(pieces)
            outputs, new_states = self.flat.call(pieces, states, as_input(images), training=True)
            loss = tf.reduce_sum(losses_of(outputs, labels, from_logits=self._from_logits))
        # The scale enters where the chain rule begins, which costs no kernel.
        gradients = tape.gradient(loss, pieces, output_gradients=scale, unconnected_gradients="zero")
        if len(self.devices) == 1:
            self.averaging.layers(gradients)
        counts = tf.sign(scale)
        return counts * loss, counts * num_correct(outputs, labels), self.flat.concat(gradients), new_states


def mean_states(parts: Sequence[Sequence[tf.Tensor]]) -> list[tf.Tensor]:
    """Combine the states after each part of a step: the mean of statistics, the last of seeds."""
    return [
        tf.add_n(values) / len(values) if values[0].dtype.is_floating and len(values) > 1 else values[-1]
        for values in zip(*parts, strict=True)
    ]
