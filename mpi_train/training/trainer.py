"""The training loop: many steps as one compiled graph, over one or several devices of this process.

The host hands the graph a chunk of steps, about half a second's worth, and gets its turn between
chunks; within a step it is visited only to exchange with other ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import keras
import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import Nothing
from mpi_train.data.examples import Examples
from mpi_train.models.flat import FlatModel
from mpi_train.models.optimizers import WarmedUp, update_for
from mpi_train.models.zoo import returns_probabilities
from mpi_train.runtime.aligned import as_tensor
from mpi_train.runtime.world import World
from mpi_train.training.loop import ChunkCallback, run_chunks
from mpi_train.training.losses import as_input, losses_of, num_correct
from mpi_train.training.steps import Steps
from mpi_train.training.totals import EpochTotals

Batch: TypeAlias = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
"""Images, labels and the scale of the loss, as in ``Steps``."""


class _Data:
    """Images and labels where the training computes, as variables: a loop hands tensors round at each step.

    Args:
        examples: At first.
        device: Where.
    """

    def __init__(self, examples: Examples, device: str) -> None:
        # On the CPU in the memory of the arrays; on a GPU a copy.
        tensors = as_tensor(examples.images), as_tensor(examples.labels)
        with tf.device(device):
            self._variables = [
                tf.Variable(tensor, trainable=False, shape=[None, *tensor.shape[1:]]) for tensor in tensors
            ]

    def assign(self, examples: Examples) -> None:
        for variable, array in zip(self._variables, (examples.images, examples.labels), strict=True):
            variable.assign(as_tensor(array))

    def take(self, indices: tf.Tensor, device: str) -> tuple[tf.Tensor, tf.Tensor]:
        """Inside a graph, the images and labels at ``indices``."""
        with tf.device(device):
            # From a variable itself only on a GPU: there nothing else takes bytes, and here it would first be
            # copied, as one that is shared with NumPy.
            whole = [v if "GPU" in v.device else v.read_value() for v in self._variables]
            images, labels = (tf.gather(each, indices) for each in whole)
            return images, labels


class Trainer:
    """Trains a model on the examples of this process.

    Args:
        flat: The model, its weights on the first of ``devices``.
        optimizer: A fresh Keras optimizer.
        examples: This process's part of the training set.
        averaging: What is averaged over the ranks, and when.
        devices: Each step's examples are split evenly over these; one that is named several times takes its
            parts one after another.
        warmup: With what part of its final learning rate it starts, and the steps until it has that.

    Attributes:
        update: The optimizer, bound to the flat buffer.
        examples: What is trained on.
        counts: Whether they count; where several ranks work on the same ones, those of one do.
    """

    counts = True

    def __init__(
        self,
        flat: FlatModel,
        optimizer: keras.Optimizer,
        examples: Examples,
        *,
        averaging: Nothing | None = None,
        devices: Sequence[str] = ("/CPU:0",),
        warmup: tuple[float, int] | None = None,
    ) -> None:
        self.devices = tuple(devices)
        self.flat = flat
        self.update = update_for(optimizer, flat, self.devices[0])
        if warmup is not None:
            self.update = WarmedUp(self.update, *warmup)
        self.averaging = averaging or Nothing()
        self.averaging.attach(self.update)
        self._from_logits = not returns_probabilities(flat.model)
        self._data = _Data(examples, self.devices[0])
        self.examples = examples

    def feed(self, examples: Examples) -> None:
        """Trains on these ``examples`` from now on."""
        self.examples = examples
        self._data.assign(examples)

    @property
    def variables(self) -> list[tf.Variable]:
        """All that a rank must have in common with the others when training starts."""
        return [self.flat.weights.value, *self.flat.moving_statistics, *self.update.variables]

    def warm_up(self, order: np.ndarray, steps: Steps) -> None:
        """Runs the graphs that ``steps`` need once and undoes it, so that no epoch's time holds their making.

        On all ranks together; arguments as for ``train_epoch``.
        """
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
        overseer: ChunkCallback | None = None,
        *,
        first: int = 0,
    ) -> EpochTotals:
        """Runs the steps of one epoch, from step ``first`` on.

        Args:
            order: int32 (n,): the rank's examples in the order of this epoch.
            steps: How they are laid out in steps.
            world: The ranks.
            overseer: Is asked between chunks.
        """
        return run_chunks(
            self.prepare(order, steps),
            steps,
            world,
            overseer or ChunkCallback(),
            weights=lambda: [self.flat.weights.numpy()],
            averaging=self.averaging,
            first=first,
            counts=self.counts,
        )

    def prepare(self, order: np.ndarray, steps: Steps) -> Callable[[int, int], tuple[float, float]]:
        """Hands an epoch to TensorFlow.

        Args:
            order, steps: As for ``train_epoch``.

        Returns:
            A function of two step numbers, first and stop, that trains the steps between them and
            returns the sums of the loss and the hits over this rank's examples in them.
        """
        parts = steps.regular_parts
        with tf.device("/CPU:0"):
            rows = tf.zeros([0, 0], tf.int32) if parts is None else tf.constant(steps.regular_rows(order))
            inputs = [tf.constant(array) for array in (order, steps.begins, steps.sizes, steps.scales)]

        def run(first: int, stop: int) -> tuple[float, float]:
            # The last step is often smaller. A graph that knows the sizes has fewer kernels to run.
            turn = first if parts is None else min(stop, len(steps) - 1)
            totals = np.zeros(2)
            if first < turn:
                totals += self._run_regular(rows, tf.constant(first), tf.constant(turn), parts=parts)
            if turn < stop:
                totals += self._run(*inputs, tf.constant(turn), tf.constant(stop))
            return self.sums(*totals.tolist())

        return run

    def sums(self, loss: float, correct: float) -> tuple[float, float]:
        """The sums of the loss and the hits over this rank's examples, given what its graph returned."""
        return loss, correct

    @tf.function(autograph=False, reduce_retracing=True)
    def _run_regular(
        self, rows: tf.Tensor, first: tf.Tensor, stop: tf.Tensor, *, parts: tuple[tuple[int, float], ...]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Steps ``first`` to ``stop``, of which none is the last, given size and scale of their parts."""
        sizes = [size for size, _ in parts]

        def parts_of(step: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
            row = tf.gather(rows, step)
            row.set_shape([sum(sizes)])
            pieces = [row] if len(parts) == 1 else tf.split(row, sizes)
            return [(piece, tf.constant(scale)) for piece, (_, scale) in zip(pieces, parts, strict=True)]

        return self._loop(first, stop, parts_of, lambda _: tf.constant(value=False))

    @tf.function(autograph=False, reduce_retracing=True)
    def _run(
        self,
        order: tf.Tensor,
        begins: tf.Tensor,
        sizes: tf.Tensor,
        scales: tf.Tensor,
        first: tf.Tensor,
        stop: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Steps ``first`` to ``stop``, whatever they are."""

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
        """Steps ``first`` to ``stop``, given the indices and the scale of each part of one."""

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
        """The gradient of one step, inside a graph; BatchNorm's statistics are updated on the way.

        Args:
            batches: For each device images, labels and the scale of its loss, as in ``Steps``.

        Returns:
            The sum of the loss and the hits over the examples, float32 (), and the gradient of the
            scaled loss, float32 (num_padded,).
        """
        parts: list[tuple[tf.Tensor, tf.Tensor, tf.Tensor, list[tf.Tensor]]] = []
        in_turn = len(set(self.devices)) < len(self.devices)
        for device, batch in zip(self.devices, batches, strict=True):
            # In turn, each adds its gradient to that of those before: no two of them are in memory at once.
            with tf.device(device), tf.control_dependencies([parts[-1][2]] if in_turn and parts else []):
                loss, correct, gradient, states = self._part_gradient(*batch)
                if in_turn and parts:
                    gradient += parts[-1][2]
                parts.append((loss, correct, gradient, states))
        if len(parts) > 1:
            losses, hits, gradients, new_states = zip(*parts, strict=True)
            loss, correct = tf.add_n(losses), tf.add_n(hits)
            gradient = gradients[-1] if in_turn else tf.add_n(gradients)
            states = mean_states(new_states)
        for variable, state in zip(self.flat.states, states, strict=True):
            variable.assign(state)
        return loss, correct, gradient

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
        # The scale is put in where the chain rule begins, so that no kernel is spent on it.
        gradients = tape.gradient(loss, pieces, output_gradients=scale, unconnected_gradients="zero")
        if len(self.devices) == 1:
            self.averaging.layers(gradients)
        counts = tf.sign(scale)
        return counts * loss, counts * num_correct(outputs, labels), self.flat.concat(gradients), new_states


def mean_states(parts: Sequence[Sequence[tf.Tensor]]) -> list[tf.Tensor]:
    """A step's new states, given those after each part: the mean of statistics, the last of seeds."""
    return [
        tf.add_n(values) / len(values) if values[0].dtype.is_floating else values[-1]
        for values in zip(*parts, strict=True)
    ]
