"""Evaluation on the test set: each rank computes its part, and sums over ranks give the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from mpi_train.data.examples import Examples
from mpi_train.runtime.aligned import as_tensor
from mpi_train.runtime.world import World
from mpi_train.training.losses import as_input, losses_of

BATCH = 128  # enough to use all cores, few enough to need little memory


@dataclass(frozen=True, eq=False)
class Scores:
    """Results of one rank's part of the test set, n examples.

    Attributes:
        labels: uint8 (n,), class of each example.
        losses: float32 (n,), cross-entropy of each example.
        predicted: int32 (n,), class with the largest output.
    """

    labels: np.ndarray
    losses: np.ndarray
    predicted: np.ndarray

    def means(self, world: World) -> tuple[float, float]:
        """Return mean loss and accuracy over the parts of all ranks."""
        num_correct = np.count_nonzero(self.predicted == self.labels)
        mine = np.array([self.losses.sum(dtype=np.float64), num_correct, len(self.labels)], np.float64)
        loss, correct, count = world.sum(mine)
        return float(loss / count), float(correct / count)

    def confusion(self, world: World, num_classes: int) -> list[list[int]]:
        """Count the examples of all ranks by label (row) and prediction (column)."""
        cells = num_classes * self.labels.astype(np.int64) + self.predicted
        counts = world.sum(np.bincount(cells, minlength=num_classes**2))
        return counts.reshape(num_classes, num_classes).tolist()

    def none(self) -> Scores:
        """Return the scores of no examples, for a rank whose examples another rank counts."""
        return Scores(self.labels[:0], self.losses[:0], self.predicted[:0])


class Evaluator:
    """Evaluation of a model on one rank's part of the test set.

    Args:
        predict: Function from float32 images (n, h, w, c) to outputs (n, num_classes).
        examples: This rank's part of the test set.
        from_logits: True if the outputs are logits, False if they are probabilities.
    """

    def __init__(
        self, predict: Callable[[tf.Tensor], tf.Tensor], examples: Examples, *, from_logits: bool
    ) -> None:
        self._predict, self._examples, self._from_logits = predict, examples, from_logits
        self._inputs = as_tensor(examples.images), as_tensor(examples.labels)

    def trace(self) -> None:
        """Build the graph, so that the time of the first evaluation holds no tracing."""
        self._look.get_concrete_function(*self._inputs)

    def evaluate(self) -> Scores:
        """Evaluate the current weights on this rank's part, on all ranks together."""
        return Scores(self._examples.labels, *(array.numpy() for array in self._look(*self._inputs)))

    def accuracy_on(self, examples: Examples) -> float:
        """Return the accuracy on other examples, of this rank alone."""
        _, predicted = self._look(as_tensor(examples.images), as_tensor(examples.labels))
        return float(np.mean(predicted.numpy() == examples.labels))

    @tf.function(autograph=False, reduce_retracing=True)
    def _look(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return loss, float32 (n,), and predicted class, int32 (n,), of each example."""
        count = tf.shape(labels)[0]
        size = (count + BATCH - 1) // BATCH

        def body(
            batch: tf.Tensor, losses: tf.TensorArray, predicted: tf.TensorArray
        ) -> tuple[tf.Tensor, tf.TensorArray, tf.TensorArray]:
            some = slice(batch * BATCH, tf.minimum((batch + 1) * BATCH, count))
            outputs = self._predict(as_input(images[some]))
            y = tf.cast(labels[some], tf.int32)
            loss = tf.cast(losses_of(outputs, y, from_logits=self._from_logits), tf.float32)
            winner = tf.argmax(outputs, 1, output_type=tf.int32)
            return batch + 1, losses.write(batch, loss), predicted.write(batch, winner)

        empty = [
            tf.TensorArray(dtype, size, element_shape=[None], infer_shape=False)
            for dtype in (tf.float32, tf.int32)
        ]
        found = tf.while_loop(lambda batch, *_: batch < size, body, (0, *empty), parallel_iterations=1)
        return found[1].concat(), found[2].concat()
