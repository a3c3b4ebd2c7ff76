"""The parts of a training step, each in a graph loop of its own that runs it as often as it is told."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from mpi_train.benchmarks.step.flops import count_flop
from mpi_train.models.zoo import returns_probabilities
from mpi_train.runtime.world import World
from mpi_train.training.losses import losses_of
from mpi_train.training.steps import Steps
from mpi_train.training.trainer import Trainer

PRODUCT_SIZE = 1024
"""Rows and columns of the matrices whose product says what a core can do."""
PRODUCT_FLOP = 2 * PRODUCT_SIZE**3

# What a loop computes hangs on the number of the step, one of two inputs being taken in turn (a slice,
# not a copy): otherwise a graph optimizer could move it out of the loop and compute it once.


class Gradient:
    """Forward pass, loss and backward pass of a plain Keras model on a ready batch.

    Nothing of the suite's own loop is in it: the model keeps its own variables, the batch is
    normalised and on the device.

    Args:
        model: A built Keras model.
        images: float32 (2, n, height, width, channels), two batches.
        labels: int32 (n,), for both.
    """

    def __init__(self, model: keras.Model, images: np.ndarray, labels: np.ndarray) -> None:
        self._model = model
        self._from_logits = not returns_probabilities(model)
        self._images = tf.constant(images)
        self._labels = tf.constant(labels)

    def __call__(self, count: int) -> None:
        self._loop(tf.constant(count))[-1].numpy()

    def flop(self) -> int:
        """Floating-point operations of one gradient."""
        graph = tf.function(lambda: self._gradients(self._images[0]), autograph=False)
        return count_flop(graph.get_concrete_function().outputs)

    @tf.function(autograph=False)
    def _loop(self, count: tf.Tensor) -> list[tf.Tensor]:
        def body(step: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return step + 1, *self._gradients(self._images[step % 2])

        # All gradients leave the loop, at some 0.5 µs each. A control dependency would not keep one that
        # nobody reads: TensorFlow puts an operation that does nothing in its place.
        start = [tf.zeros(variable.shape) for variable in self._model.trainable_variables]
        _, *last = tf.while_loop(lambda step, *_: step < count, body, (0, *start), parallel_iterations=1)
        return last

    def _gradients(self, images: tf.Tensor) -> list[tf.Tensor]:
        weights = [variable.value for variable in self._model.trainable_variables]
        with tf.GradientTape() as tape:
            outputs = self._model(images, training=True)
            loss = tf.reduce_mean(losses_of(outputs, self._labels, from_logits=self._from_logits))
        return tape.gradient(loss, weights, unconnected_gradients="zero")


class Update:
    """The optimizer's update of all weights, as the trainer applies it.

    Args:
        trainer: Whose weights are updated, to and fro, so that they stay about where they are.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        noise = np.random.default_rng(0).normal(0, 1e-3, trainer.flat.num_padded).astype(np.float32)
        with tf.device(trainer.devices[0]):
            self._gradients = tf.constant(np.stack([noise, -noise]))

    def __call__(self, count: int) -> None:
        self._loop(tf.constant(count)).numpy()

    @tf.function(autograph=False)
    def _loop(self, count: tf.Tensor) -> tf.Tensor:
        def body(step: tf.Tensor) -> tuple[tf.Tensor]:
            self._trainer.update.apply(self._gradients[step % 2])
            return (step + 1,)

        tf.while_loop(lambda step: step < count, body, (0,), parallel_iterations=1)
        return self._trainer.flat.weights.value[0]


class Step:
    """Whole steps of a trainer, epoch after epoch over the same examples.

    Args:
        trainer: What trains.
        order: int32 (n,), the rank's examples in the order of every epoch.
        steps: How they are laid out in steps.
    """

    def __init__(self, trainer: Trainer, order: np.ndarray, steps: Steps) -> None:
        self._trainer = trainer
        self._num_steps = len(steps)
        trainer.warm_up(order, steps)
        self._run_steps = trainer.prepare(order, steps)

    def __call__(self, count: int) -> None:
        while count > 0:
            num_steps = min(count, self._num_steps)
            self._run_steps(0, num_steps)
            count -= num_steps
        self._trainer.averaging.take_traffic(World())  # or it would pile up


class Product:
    """A product of two square matrices of ``PRODUCT_SIZE``: the most that a kernel gets out of the device.

    Args:
        dtype: ``float32`` or ``bfloat16``.
    """

    def __init__(self, dtype: str) -> None:
        values = np.random.default_rng(0).normal(size=(3, PRODUCT_SIZE, PRODUCT_SIZE))
        self._lefts, self._right = tf.cast(values[:2], dtype), tf.cast(values[2], dtype)

    def __call__(self, count: int) -> None:
        self._loop(tf.constant(count)).numpy()

    @tf.function(autograph=False)
    def _loop(self, count: tf.Tensor) -> tf.Tensor:
        def body(step: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return step + 1, self._lefts[step % 2] @ self._right

        start = (0, tf.zeros_like(self._right))
        _, last = tf.while_loop(lambda step, _: step < count, body, start, parallel_iterations=1)
        return last[0, 0]
