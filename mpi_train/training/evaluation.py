"""The model's outputs on the whole test set, each rank taking its part of it."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from mpi_train.data.examples import Examples
from mpi_train.runtime.aligned import as_tensor
from mpi_train.training.losses import as_input, losses_of
from mpi_train.training.scores import Scores, nothing_of

BATCH = 128
"""Examples at a time: enough to keep the cores busy, few enough to take little memory."""


class Evaluator:
    """Args:
    predict: float32 images (n, h, w, c) to outputs (n, num_classes), with the current weights.
    examples: This rank's part of the test set.
    from_logits: Whether the outputs are logits, or probabilities.
    counts: Whether these examples count; where several ranks work on the same ones, those of one do.
    shown: The same examples to tell of, where these are not whole.
    """

    def __init__(
        self,
        predict: Callable[[tf.Tensor], tf.Tensor],
        examples: Examples,
        *,
        from_logits: bool,
        counts: bool = True,
        shown: Examples | None = None,
    ) -> None:
        self._predict = predict
        self._from_logits, self._counts = from_logits, counts
        self._examples = shown or examples
        self._images = as_tensor(examples.images)
        self._labels = as_tensor(examples.labels)

    def trace(self) -> None:
        """Builds the graph, so that the first evaluation's time holds evaluation alone."""
        self._look.get_concrete_function(self._images, self._labels)

    def evaluate(self) -> Scores:
        """How the current weights do on this rank's part; on all ranks together."""
        losses, predicted = self._look(self._images, self._labels)
        if not self._counts:
            return nothing_of(self._examples)
        return Scores(self._examples, losses.numpy(), predicted.numpy())

    def accuracy_on(self, examples: Examples) -> float:
        """Accuracy on other examples, of this rank alone."""
        losses, predicted = self._look(as_tensor(examples.images), as_tensor(examples.labels))
        return Scores(examples, losses.numpy(), predicted.numpy()).num_correct / len(examples)

    @tf.function(autograph=False, reduce_retracing=True)
    def _look(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss of each example, float32 (n,), and its class by the model, int32 (n,)."""
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

        empty = (
            tf.TensorArray(dtype, size, element_shape=[None], infer_shape=False)
            for dtype in (tf.float32, tf.int32)
        )
        _, losses, predicted = tf.while_loop(
            lambda batch, *_: batch < size, body, (0, *empty), parallel_iterations=1
        )
        return losses.concat(), predicted.concat()
