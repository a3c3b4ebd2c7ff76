"""Loss and accuracy over the whole test set, each rank taking its part of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from mpi_train.data.examples import Examples
from mpi_train.memory import as_tensor
from mpi_train.trainer import as_input, losses_of, num_correct
from mpi_train.world import World

BATCH = 128
"""Examples at a time: enough to keep the cores busy, few enough to take little memory."""


class Evaluator:
    """Args:
    predict: float32 images (n, h, w, c) to outputs (n, num_classes), with the current weights.
    examples: This rank's part of the test set.
    from_logits: Whether the outputs are logits, or probabilities.
    counts: Whether these examples count; where several ranks work on the same ones, those of one do.
    """

    def __init__(
        self,
        predict: Callable[[tf.Tensor], tf.Tensor],
        examples: Examples,
        *,
        from_logits: bool,
        counts: bool = True,
    ) -> None:
        self._predict = predict
        self._from_logits, self._counts = from_logits, counts
        self._images = as_tensor(examples.images)
        self._labels = as_tensor(examples.labels)

    def trace(self) -> None:
        """Builds the graph, so that the first evaluation's time holds evaluation alone."""
        self._sums.get_concrete_function(self._images, self._labels)

    def evaluate(self, world: World) -> tuple[float, float]:
        """Mean loss and accuracy over the test sets of all ranks together."""
        loss, correct = self._sums(self._images, self._labels)
        mine = np.array([float(loss), float(correct), len(self._labels)], np.float64)
        loss_sum, correct_sum, count = world.sum(mine if self._counts else np.zeros(3))
        return float(loss_sum / count), float(correct_sum / count)

    def accuracy_on(self, examples: Examples) -> float:
        """Accuracy on other examples, of this rank alone."""
        _, correct = self._sums(as_tensor(examples.images), as_tensor(examples.labels))
        return float(correct) / len(examples)

    @tf.function(autograph=False, reduce_retracing=True)
    def _sums(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        count = tf.shape(labels)[0]

        def body(start: tf.Tensor, loss: tf.Tensor, correct: tf.Tensor) -> tuple[tf.Tensor, ...]:
            stop = tf.minimum(start + BATCH, count)
            outputs = self._predict(as_input(images[start:stop]))
            y = tf.cast(labels[start:stop], tf.int32)
            batch_loss = tf.reduce_sum(losses_of(outputs, y, from_logits=self._from_logits))
            return stop, loss + batch_loss, correct + num_correct(outputs, y)

        _, loss, correct = tf.while_loop(
            lambda start, *_: start < count, body, (0, 0.0, 0.0), parallel_iterations=1
        )
        return loss, correct
