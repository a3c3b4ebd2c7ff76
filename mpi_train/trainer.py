"""The training loop: many steps as one compiled graph, over one or several devices of this process.

The host hands the graph a chunk of steps, about half a second's worth, and gets its turn between
chunks; within a step the only visit to the host is the all-reduce.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from mpi_train.averaging import Nothing
from mpi_train.data.examples import Examples
from mpi_train.flat import FlatModel
from mpi_train.models import returns_probabilities
from mpi_train.optimizers import update_for
from mpi_train.order import Steps
from mpi_train.records import EpochTotals, RankTimes
from mpi_train.world import World

CHUNK_S = 0.5
"""Seconds that a chunk of steps should take."""


def as_input(images: tf.Tensor) -> tf.Tensor:
    """uint8 (n, h, w) or (n, h, w, c) to float32 (n, h, w, c) in [0, 1]."""
    scaled = tf.cast(images, tf.float32) * (1 / 255)
    return scaled if images.shape.rank == 4 else scaled[..., tf.newaxis]


def losses_of(outputs: tf.Tensor, labels: tf.Tensor, *, from_logits: bool) -> tf.Tensor:
    """Cross-entropy of each example: float32 (n,)."""
    return keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits=from_logits)


def num_correct(outputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """How many examples have their largest output at their label: float32 ()."""
    hits = tf.argmax(outputs, 1, output_type=tf.int32) == tf.cast(labels, tf.int32)
    return tf.reduce_sum(tf.cast(hits, tf.float32))


class Trainer:
    """Trains a model on the examples of this process.

    Args:
        flat: The model, its weights on the first of ``devices``.
        optimizer: A fresh Keras optimizer.
        examples: This process's part of the training set.
        averaging: What is averaged over the ranks, and when.
        devices: Each step's examples are split evenly over these.

    Attributes:
        update: The optimizer, bound to the flat buffer.
    """

    def __init__(
        self,
        flat: FlatModel,
        optimizer: keras.Optimizer,
        examples: Examples,
        *,
        averaging: Nothing | None = None,
        devices: Sequence[str] = ("/CPU:0",),
    ) -> None:
        self.devices = tuple(devices)
        self.flat = flat
        self.update = update_for(optimizer, flat, self.devices[0])
        self.averaging = averaging or Nothing()
        self._from_logits = not returns_probabilities(flat.model)
        with tf.device(self.devices[0]):
            # convert_to_tensor aliases a 64-byte-aligned array on the CPU, where tf.constant copies.
            self.images = tf.convert_to_tensor(examples.images)
            self.labels = tf.convert_to_tensor(examples.labels)

    @property
    def variables(self) -> list[tf.Variable]:
        """All that a rank must have in common with the others when training starts."""
        return [self.flat.weights.value, *self.flat.moving_statistics, *self.update.variables]

    def trace(self) -> None:
        """Builds the graph, so that the first epoch's time holds training alone."""
        self._chunk.get_concrete_function(
            self.images,
            self.labels,
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None], tf.float32),
            tf.TensorSpec([], tf.int32),
            tf.TensorSpec([], tf.int32),
        )

    def train_epoch(
        self,
        order: np.ndarray,
        steps: Steps,
        world: World,
        on_chunk: Callable[[int, float], None] = lambda _step, _loss: None,
    ) -> EpochTotals:
        """Runs the steps of one epoch.

        Args:
            order: int32 (n,): the rank's examples in the order of this epoch.
            steps: How they are laid out in steps.
            world: The ranks, which agree on the length of each chunk.
            on_chunk: Called between chunks with the steps done and the mean loss of the last chunk's
                examples on this rank.
        """
        order_t = tf.convert_to_tensor(order)
        bounds, scales = tf.convert_to_tensor(steps.bounds), tf.convert_to_tensor(steps.scales)
        loss = correct = graph_s = 0.0
        first, length = 0, 8
        self.averaging.take_durations()
        world.barrier()
        begin = time.perf_counter()
        while first < len(steps):
            stop = min(first + length, len(steps))
            start = time.perf_counter()
            chunk_loss, chunk_correct = self.run_steps(order_t, bounds, scales, first, stop)
            elapsed = time.perf_counter() - start
            graph_s, loss, correct = graph_s + elapsed, loss + chunk_loss, correct + chunk_correct
            on_chunk(stop, chunk_loss / max(1, int(steps.bounds[stop] - steps.bounds[first])))
            length = max(1, int((stop - first) * CHUNK_S / world.maximum(elapsed)))
            first = stop
        train_s = time.perf_counter() - begin
        loss, correct, count = world.sum(np.array([loss, correct, len(order)], np.float64))
        return EpochTotals(
            loss=float(loss / count),
            accuracy=float(correct / count),
            train_s=world.maximum(train_s),
            by_rank=_times_by_rank(world, train_s, graph_s, self.averaging.take_durations()),
        )

    def run_steps(
        self, order: tf.Tensor, bounds: tf.Tensor, scales: tf.Tensor, first: int, stop: int
    ) -> tuple[float, float]:
        """Runs steps ``first`` to ``stop`` of an epoch as one graph.

        Args:
            order: As for ``train_epoch``.
            bounds, scales: Of ``Steps``.

        Returns:
            The loss and the hits, summed over the examples of these steps on this rank.
        """
        totals = self._chunk(
            self.images, self.labels, order, bounds, scales, tf.constant(first), tf.constant(stop)
        )
        return float(totals[0]), float(totals[1])

    @tf.function(autograph=False, reduce_retracing=True)
    def _chunk(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        order: tf.Tensor,
        bounds: tf.Tensor,
        scales: tf.Tensor,
        first: tf.Tensor,
        stop: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Steps ``first`` to ``stop``; returns the sums over their examples of the loss and the hits."""
        num_steps = tf.shape(scales)[0]

        def body(step: tf.Tensor, loss: tf.Tensor, correct: tf.Tensor) -> tuple[tf.Tensor, ...]:
            step_loss, step_correct, gradient = self.gradient(
                images, labels, order, bounds[step], bounds[step + 1], scales[step]
            )
            self.update.apply(self.averaging.gradient(gradient))
            self.averaging.weights(self.flat.weights, step, step + 1 == num_steps)
            return step + 1, loss + step_loss, correct + step_correct

        _, loss, correct = tf.while_loop(
            lambda step, *_: step < stop, body, (first, 0.0, 0.0), parallel_iterations=1
        )
        return loss, correct

    def gradient(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        order: tf.Tensor,
        start: tf.Tensor,
        stop: tf.Tensor,
        scale: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The gradient of one step, inside a graph, each device taking its part of the examples.

        Returns:
            The sum of the loss and the hits over the examples, float32 (), and the gradient of the
            scaled loss, float32 (num_padded,).
        """
        parts = []
        count = len(self.devices)
        for i, device in enumerate(self.devices):
            begin = start + (stop - start) * i // count
            end = start + (stop - start) * (i + 1) // count
            with tf.device(device):
                parts.append(self._device_gradient(images, labels, order, begin, end, scale))
        losses, hits, gradients, states = zip(*parts, strict=True)
        for variable, *values in zip(self.flat.states, *states, strict=True):
            variable.assign(tf.add_n(values) / count if variable.dtype.is_floating else values[0])
        return tf.add_n(losses), tf.add_n(hits), tf.add_n(gradients)

    def _device_gradient(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        order: tf.Tensor,
        begin: tf.Tensor,
        end: tf.Tensor,
        scale: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        # The last batch of an epoch can be too small for everyone to get an example. Who gets none
        # computes on one that does not count, as BatchNorm makes NaN of an empty batch.
        counts = tf.cast(end > begin, tf.float32)
        begin = tf.minimum(begin, tf.shape(order)[0] - 1)
        indices = order[begin : tf.maximum(end, begin + 1)]
        y = tf.gather(labels, indices)
        x = as_input(tf.gather(images, indices))
        pieces = self.flat.slices(tf.identity(self.flat.weights.value))
        states = [tf.identity(state) for state in self.flat.states]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(pieces)
            outputs, new_states = self.flat.call(pieces, states, x, training=True)
            loss = counts * tf.reduce_sum(losses_of(outputs, y, from_logits=self._from_logits))
            scaled = loss * scale
        gradients = tape.gradient(scaled, pieces, unconnected_gradients="zero")
        return loss, counts * num_correct(outputs, y), self.flat.concat(gradients), new_states


def _times_by_rank(world: World, train_s: float, graph_s: float, reduce_s: np.ndarray) -> list[RankTimes]:
    """Where each rank's time went, from the durations of its all-reduces.

    No clocks are compared: the rank that comes last to an all-reduce waits for nobody, so that the
    shortest of the ranks' durations is what moving the bytes took, and the rest is waiting.
    """
    everyone = world.gather_all((train_s, graph_s, reduce_s))
    moving_s = float(np.min([durations for _, _, durations in everyone], axis=0).sum())
    return [
        RankTimes(
            compute_s=graph - float(durations.sum()),
            moving_s=moving_s,
            waiting_s=float(durations.sum()) - moving_s,
            host_s=total - graph,
        )
        for total, graph, durations in everyone
    ]
