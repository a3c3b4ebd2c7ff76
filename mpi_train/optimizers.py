"""Keras's optimizers, applied to the flat buffer of weights.

Most optimizers treat every weight alike, so that updating one long vector equals updating each
layer's tensor, with far fewer kernels. The few that look at a layer as a whole (its norm, its rows
and columns) are given the layers one by one.
"""

from __future__ import annotations

import difflib

import keras
import tensorflow as tf

from mpi_train.errors import UsageError
from mpi_train.flat import FlatModel

ELEMENTWISE = (
    "adadelta", "adagrad", "adam", "adamax", "adamw", "ftrl", "lion", "nadam", "rmsprop", "sgd",
)  # fmt: skip
LAYERWISE = ("adafactor", "lamb", "muon")
OPTIMIZERS = (*ELEMENTWISE, *LAYERWISE)


def build(name: str, learning_rate: float | None) -> keras.Optimizer:
    """A fresh Keras optimizer.

    Raises:
        UsageError: no such optimizer.
    """
    if name.lower() not in OPTIMIZERS:
        near = difflib.get_close_matches(name.lower(), OPTIMIZERS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"--optimizer: expected one of {', '.join(OPTIMIZERS)}. Received: {name}.{hint}")
    optimizer: keras.Optimizer = keras.optimizers.get(name.lower())
    if learning_rate is not None:
        optimizer.learning_rate = learning_rate
    return optimizer


class FlatUpdate:
    """Applies a Keras optimizer to the whole buffer at once.

    Attributes:
        variables: The optimizer's state: step count, learning rate, slots as long as the buffer.
    """

    def __init__(self, optimizer: keras.Optimizer, flat: FlatModel, device: str) -> None:
        self.optimizer = optimizer
        self.flat = flat
        with tf.device(device):
            optimizer.build([flat.weights])

    @property
    def variables(self) -> list[tf.Variable]:
        return [v.value for v in self.optimizer.variables]

    def apply(self, gradient: tf.Tensor) -> None:
        """Updates the weights with a gradient of float32 (num_padded,)."""
        self.optimizer.apply([gradient], [self.flat.weights])


class LayerUpdate(FlatUpdate):
    """Applies a Keras optimizer layer by layer, through the model's own variables."""

    def __init__(self, optimizer: keras.Optimizer, flat: FlatModel, device: str) -> None:
        self.optimizer = optimizer
        self.flat = flat
        self._layers = flat.model.trainable_variables
        with tf.device(device):
            optimizer.build(self._layers)

    def apply(self, gradient: tf.Tensor) -> None:
        weights = self.flat.slices(self.flat.weights.value.read_value())
        for variable, value in zip(self._layers, weights, strict=True):
            variable.assign(value)
        self.optimizer.apply(self.flat.slices(gradient), self._layers)
        self.flat.weights.assign(self.flat.concat([variable.value.read_value() for variable in self._layers]))


def update_for(optimizer: keras.Optimizer, flat: FlatModel, device: str) -> FlatUpdate:
    """The way to apply ``optimizer`` to ``flat`` that does what Keras would do layer by layer."""
    kind = FlatUpdate if optimizer.name.lower() in ELEMENTWISE else LayerUpdate
    return kind(optimizer, flat, device)
