"""Evaluation on the test set: each rank computes its part, and sums over ranks give the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from mpi_train.data.examples import Examples
from mpi_train.runtime.aligned import as_tensor
from mpi_train.runtime.world import World
from mpi_train.training.inputs import as_input, as_target
from mpi_train.training.objective import Forward, Objective

BATCH = 128  # enough to use all cores, few enough to need little memory


@dataclass(frozen=True, eq=False)
class Scores:
    """Results of one rank's part of the test set.

    Attributes:
        count: Number of examples, n.
        loss: Sum over batches of the loss times the number of examples, as Keras sums it up.
        metrics: Growth of the metrics; see ``Objective.growth``.
        labels, predicted: (n,), class of each example, and class with the largest output, int32; empty if the
            model does not tell classes apart.
    """

    count: int
    loss: float
    metrics: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray

    def means(self, world: World) -> tuple[float, list[float]]:
        """Return the mean loss and the sums of the metrics over the parts of all ranks."""
        count, loss, *metrics = world.sum(np.array([self.count, self.loss, *self.metrics])).tolist()
        return loss / count, metrics

    def confusion(self, world: World, num_classes: int) -> list[list[int]] | None:
        """Count the examples of all ranks by label (row) and prediction (column); None without classes."""
        if not sum(world.gather_all(len(self.predicted))):
            return None
        cells = num_classes * self.labels.astype(np.int64) + self.predicted
        counts = world.sum(np.bincount(cells, minlength=num_classes**2))
        return counts.reshape(num_classes, num_classes).tolist()

    def none(self) -> Scores:
        """Return the scores of no examples, for a rank whose examples another rank counts."""
        return replace(self, count=0, labels=self.labels[:0], predicted=self.predicted[:0])


class Evaluator:
    """Evaluation of a model on one rank's part of the test set.

    Args:
        objective: Loss and metrics of the model.
        values: Function that returns the current weights and states, inside a graph.
        examples: This rank's part of the test set.
        forward: Function that evaluates a batch (default: that of ``objective``).
    """

    def __init__(
        self,
        objective: Objective,
        values: Callable[[], tuple[list[tf.Tensor], list[tf.Tensor]]],
        examples: Examples,
        forward: Callable[..., Forward] | None = None,
    ) -> None:
        self._objective, self._values, self._examples = objective, values, examples
        self._forward = forward or objective.forward
        self._inputs = _tensors(examples)

    def trace(self) -> None:
        """Build the graph, so that the time of the first evaluation holds no tracing."""
        self._run.get_concrete_function(*self._inputs)

    def evaluate(self) -> Scores:
        """Evaluate the current weights on this rank's part, on all ranks together."""
        return self._scores(self._examples, self._inputs)

    def results_on(self, examples: Examples) -> dict[str, float]:
        """Return the metrics on other examples, of this rank alone."""
        return self._objective.results(self._scores(examples, _tensors(examples)).metrics.tolist())

    def _scores(self, examples: Examples, inputs: tuple[Any, Any]) -> Scores:
        loss, predicted, *metrics = self._run(*inputs)
        labels = examples.labels if len(predicted) else np.zeros(0, np.int32)
        growth = self._objective.growth(metrics)
        return Scores(len(examples), float(loss), growth, labels, predicted.numpy())

    @tf.function(autograph=False, reduce_retracing=True)
    def _run(self, images: Any, labels: Any) -> list[tf.Tensor]:
        """Return the sum of the loss, the predicted classes, int32 (n,) or (0,), and the metrics."""
        count = tf.shape(tf.nest.flatten(labels)[0])[0]
        size = (count + BATCH - 1) // BATCH
        weights, states = self._values()

        def body(
            batch: tf.Tensor, loss: tf.Tensor, predicted: tf.TensorArray, *metrics: tf.Tensor
        ) -> tuple[Any, ...]:
            some = slice(batch * BATCH, tf.minimum((batch + 1) * BATCH, count))
            x = tf.nest.map_structure(lambda array: as_input(array[some]), images)
            y = tf.nest.map_structure(lambda array: as_target(array[some]), labels)
            result = self._forward(x, y, weights, states, metrics, training=False)
            value = result.mean if result.total is None else result.mean + result.total
            number = tf.cast(some.stop - some.start, tf.float32)
            winners = _classes(result.outputs, y)
            counted = self._objective.counted(number, result.metrics, metrics)
            return batch + 1, loss + number * value, predicted.write(batch, winners), *counted

        classes = tf.TensorArray(tf.int32, size, element_shape=[None], infer_shape=False)
        initial = [tf.constant(value) for value in self._objective.initial]
        _, loss, predicted, *metrics = tf.while_loop(
            lambda batch, *_: batch < size, body, (0, 0.0, classes, *initial), parallel_iterations=1
        )
        return [loss, predicted.concat(), *metrics]


def _classes(outputs: Any, labels: Any) -> tf.Tensor:
    """Return the class with the largest output of each example, if labels are class numbers: int32 (n,)."""
    if not (tf.is_tensor(outputs) and tf.is_tensor(labels) and labels.dtype.is_integer):
        return tf.zeros([0], tf.int32)
    if outputs.shape.rank != 2 or labels.shape.rank != 1 or outputs.shape[1] == 1:
        return tf.zeros([0], tf.int32)
    return tf.argmax(outputs, 1, output_type=tf.int32)


def _tensors(examples: Examples) -> tuple[Any, Any]:
    images, labels = tf.nest.map_structure(as_tensor, (examples.images, examples.labels))
    return images, labels
