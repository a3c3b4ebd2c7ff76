"""A Keras model whose trainable weights live in one flat buffer, so that one all-reduce moves them all.

Each weight is a slice of the buffer that begins on a 64-byte boundary: TensorFlow hands such a slice
to a kernel without copying it, and the gradient of all slices is again one flat buffer.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from mpi_train.runtime.digest import digest

_ALIGNED = 16
"""float32 numbers in 64 bytes."""


class FlatModel:
    """Args:
        model: A built Keras model, of which this object takes over the training; its own trainable
            variables are only written by ``export``.
        device: Where the buffer lives.

    Attributes:
        weights: float32 (num_padded,): all trainable weights in layer order, padding of zeros between.
        states: The non-trainable variables (BatchNorm's statistics, seeds of dropout).
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
            # Keras made its variables where it liked; the training reads these.
            self.states = [tf.Variable(v.value, trainable=False) for v in model.non_trainable_variables]
        self._pads = [p - s for p, s in zip(padded, self.sizes, strict=True)]

    @property
    def num_padded(self) -> int:
        return self.starts[-1]

    def flatten(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """One array for each trainable weight, laid into a new flat buffer: float32 (num_padded,)."""
        flat = np.zeros(self.num_padded, np.float32)
        for array, start, size in zip(arrays, self.starts, self.sizes, strict=False):
            flat[start : start + size] = np.ravel(array)
        return flat

    def unflatten(self, flat: np.ndarray) -> list[np.ndarray]:
        """The inverse of ``flatten``, as views."""
        return [
            flat[start : start + size].reshape(shape)
            for start, size, shape in zip(self.starts, self.sizes, self.shapes, strict=False)
        ]

    def slices(self, flat: tf.Tensor) -> list[tf.Tensor]:
        """``unflatten`` inside a graph."""
        return [
            tf.reshape(flat[start : start + size], shape)
            for start, size, shape in zip(self.starts, self.sizes, self.shapes, strict=False)
        ]

    def concat(self, tensors: Sequence[tf.Tensor]) -> tf.Tensor:
        """``flatten`` inside a graph: float32 (num_padded,)."""
        pieces = []
        for tensor, pad in zip(tensors, self._pads, strict=True):
            pieces.append(tf.reshape(tensor, [-1]))
            if pad:
                pieces.append(tf.zeros(pad))
        return tf.concat(pieces, 0)

    def call(
        self, pieces: Sequence[tf.Tensor], states: Sequence[tf.Tensor], images: tf.Tensor, *, training: bool
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The model as a function of its weights.

        Args:
            pieces: The trainable weights, as from ``slices``.
            states: The non-trainable ones.
            images: float32 (n, height, width, channels).
            training: As Keras means it.

        Returns:
            float32 outputs (n, num_classes), and the new states.
        """
        outputs, new_states = self.model.stateless_call(list(pieces), list(states), images, training=training)
        return outputs, new_states

    def predict(self, images: tf.Tensor) -> tf.Tensor:
        """Outputs of the current weights, for evaluation."""
        pieces = self.slices(self.weights.value.read_value())
        return self.call(pieces, [s.read_value() for s in self.states], images, training=False)[0]

    @property
    def moving_statistics(self) -> list[tf.Variable]:
        """The float states (BatchNorm's means and variances): they follow the data, so ranks' differ."""
        return [state for state in self.states if state.dtype.is_floating]

    def arrays(self) -> list[np.ndarray]:
        """The weights and moving statistics, which all ranks must have in common."""
        return [self.weights.numpy(), *(state.numpy() for state in self.moving_statistics)]

    def export(self) -> keras.Model:
        """The Keras model, with the trained weights written back into its own variables."""
        flat = self.weights.numpy()
        for variable, array in zip(self.model.trainable_variables, self.unflatten(flat), strict=True):
            variable.assign(array)
        for variable, state in zip(self.model.non_trainable_variables, self.states, strict=True):
            variable.assign(state)
        return self.model


def digest_of(model: keras.Model) -> str:
    """Digest of a Keras model's weights, in layer order."""
    return digest(weight.numpy() for weight in model.weights)
