"""A Keras model whose trainable weights are one flat buffer, so that one all-reduce moves all of them.

Each weight is a slice of the buffer that begins on a 64-byte boundary. TensorFlow passes such a slice to a
kernel without a copy. The gradient of all slices is a flat buffer too.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from mpi_train.runtime.files import digest

_ALIGNED = 16
"""Number of float32 values in 64 bytes."""


class FlatModel:
    """A Keras model with its trainable weights in one buffer.

    Args:
        model: A built Keras model. Training changes its own trainable variables only in ``export``.
        device: Device of the buffer.

    Attributes:
        weights: float32 (num_padded,): all trainable weights in layer order, with zeros as padding.
        states: Non-trainable variables (BatchNorm's statistics, seeds of dropout).
    """

    def __init__(self, model: keras.Model, device: str = "/CPU:0") -> None:
        self.model = model
        self.shapes = [tuple(v.shape) for v in model.trainable_variables]
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]
        padded = [-(-size // _ALIGNED) * _ALIGNED for size in self.sizes]
        self.starts = [0, *np.cumsum(padded).tolist()]
        with tf.device(device):
            self.weights = keras.Variable(
                self.flatten([v.numpy() for v in model.trainable_variables]), dtype="float32", name="weights"
            )
            # Keras chose the device of its own variables; training reads these.
            self.states = [tf.Variable(v.value, trainable=False) for v in model.non_trainable_variables]
        self._pads = [p - s for p, s in zip(padded, self.sizes, strict=True)]

    @property
    def num_padded(self) -> int:
        """Length of the buffer, in float32 values."""
        return self.starts[-1]

    def flatten(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Copy one array for each trainable weight to a new flat buffer: float32 (num_padded,)."""
        flat = np.zeros(self.num_padded, np.float32)
        for array, start, size in zip(arrays, self.starts, self.sizes, strict=False):
            flat[start : start + size] = np.ravel(array)
        return flat

    def unflatten(self, flat: np.ndarray) -> list[np.ndarray]:
        """Return the weights in a flat buffer, as views: the inverse of ``flatten``."""
        return [
            flat[start : start + size].reshape(shape)
            for start, size, shape in zip(self.starts, self.sizes, self.shapes, strict=False)
        ]

    def slices(self, flat: tf.Tensor) -> list[tf.Tensor]:
        """Do the same as ``unflatten``, inside a graph."""
        return [
            tf.reshape(flat[start : start + size], shape)
            for start, size, shape in zip(self.starts, self.sizes, self.shapes, strict=False)
        ]

    def concat(self, tensors: Sequence[tf.Tensor]) -> tf.Tensor:
        """Do the same as ``flatten``, inside a graph: float32 (num_padded,)."""
        pieces = []
        for tensor, pad in zip(tensors, self._pads, strict=True):
            pieces.append(tf.reshape(tensor, [-1]))
            if pad:
                pieces.append(tf.zeros(pad))
        return tf.concat(pieces, 0)

    def call(
        self, pieces: Sequence[tf.Tensor], states: Sequence[tf.Tensor], images: tf.Tensor, *, training: bool
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Call the model as a function of its weights, from ``slices``, and of its non-trainable ``states``.

        Returns:
            Outputs, float32 (n, num_classes), and new states.
        """
        return self.model.stateless_call(list(pieces), list(states), images, training=training)

    def predict(self, images: tf.Tensor) -> tf.Tensor:
        """Return the outputs of the current weights, for evaluation."""
        pieces = self.slices(self.weights.value.read_value())
        return self.call(pieces, [s.read_value() for s in self.states], images, training=False)[0]

    @property
    def moving_statistics(self) -> list[tf.Variable]:
        """Float states: BatchNorm's means and variances, which differ between ranks because their data do."""
        return [state for state in self.states if state.dtype.is_floating]

    def arrays(self) -> list[np.ndarray]:
        """Return weights and moving statistics, which all ranks must have in common."""
        return [self.weights.numpy(), *(state.numpy() for state in self.moving_statistics)]

    def export(self) -> keras.Model:
        """Return the Keras model, with the trained weights in its own variables."""
        flat = self.weights.numpy()
        for variable, array in zip(self.model.trainable_variables, self.unflatten(flat), strict=True):
            variable.assign(array)
        for variable, state in zip(self.model.non_trainable_variables, self.states, strict=True):
            variable.assign(state)
        return self.model


def digest_of(model: keras.Model) -> str:
    """Return the digest of a Keras model's weights, in layer order."""
    return digest(weight.numpy() for weight in model.weights)
