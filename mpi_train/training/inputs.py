"""Inputs and targets of a model from stored examples, inside a graph."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from mpi_train.data.examples import Examples

_NUM_LOOKED_AT = 8
"""Examples on which a model is built and its losses are tried out."""


def as_input(images: tf.Tensor) -> tf.Tensor:
    """Convert uint8 (n, h, w) or (n, h, w, c) to float32 (n, h, w, c) in [0, 1]; leave other types alone."""
    if images.dtype != tf.uint8:
        return images
    scaled = tf.cast(images, tf.float32) * (1 / 255)
    return scaled[..., tf.newaxis] if images.shape.rank == 3 else scaled


def as_target(labels: tf.Tensor) -> tf.Tensor:
    """Convert class numbers to int32; leave other types alone."""
    return tf.cast(labels, tf.int32) if labels.dtype.is_integer else labels


def first_batch(examples: Examples) -> tuple[Any, Any]:
    """Return the inputs and targets of the first few examples."""
    return (
        tf.nest.map_structure(lambda array: as_input(tf.constant(array[:_NUM_LOOKED_AT])), examples.images),
        tf.nest.map_structure(lambda array: as_target(tf.constant(array[:_NUM_LOOKED_AT])), examples.labels),
    )
