"""Inputs, losses and correct predictions of a batch, inside a graph."""

from __future__ import annotations

import keras
import tensorflow as tf


def as_input(images: tf.Tensor) -> tf.Tensor:
    """Convert uint8 (n, h, w) or (n, h, w, c) to float32 (n, h, w, c) in [0, 1]."""
    scaled = tf.cast(images, tf.float32) * (1 / 255)
    return scaled if images.shape.rank == 4 else scaled[..., tf.newaxis]


def losses_of(outputs: tf.Tensor, labels: tf.Tensor, *, from_logits: bool) -> tf.Tensor:
    """Return the cross-entropy of each example: float32 (n,)."""
    if from_logits:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, outputs)
    return keras.losses.sparse_categorical_crossentropy(labels, outputs)


def num_correct(outputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Count the examples whose largest output is at their label: float32 ()."""
    return tf.reduce_sum(tf.cast(tf.argmax(outputs, 1, output_type=tf.int32) == labels, tf.float32))
