"""Keras optimizers on the flat buffer of weights.

Most optimizers treat all weights alike. An update of one long vector then equals an update of each layer,
with far fewer kernels. The few that use a layer as a whole (its norm, its singular vectors) get the layers
one by one.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import keras
import tensorflow as tf

from mpi_train.models.flat import FlatModel
from mpi_train.runtime.errors import UsageError

_NAMES = (
    "Adadelta",
    "Adagrad",
    "Adam",
    "Adamax",
    "AdamW",
    "Ftrl",
    "Lamb",
    "Lion",
    "Muon",
    "Nadam",
    "RMSprop",
    "SGD",
)
_CLASSES: dict[str, type[keras.Optimizer]] = {
    # Adafactor is missing: Keras's makes NaN of a pixel that is black in every image of a batch.
    name.lower(): getattr(keras.optimizers, name)
    for name in _NAMES
}
OPTIMIZERS = tuple(_CLASSES)


def build(name: str, learning_rate: float | None) -> keras.Optimizer:
    """Make a Keras optimizer.

    Raises:
        UsageError: the optimizer does not exist.
    """
    kind = _CLASSES.get(name.lower())
    if kind is None:
        near = difflib.get_close_matches(name.lower(), OPTIMIZERS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"--optimizer: expected one of {', '.join(OPTIMIZERS)}. Got: {name}.{hint}")
    return kind() if learning_rate is None else kind(learning_rate=learning_rate)


@dataclass(frozen=True)
class LearningRate:
    """Scaling of the requested learning rate by ``factor``, and epochs in which it rises to the product."""

    factor: float = 1.0
    warmup_epochs: float = 0.0

    def apply_to(self, optimizer: keras.Optimizer) -> None:
        """Set the final learning rate of an optimizer that has the requested one."""
        if self.factor != 1:
            optimizer.learning_rate = float(optimizer.learning_rate) * self.factor


class FlatUpdate:
    """Update of the whole buffer at once by a Keras optimizer."""

    def __init__(self, optimizer: keras.Optimizer, flat: FlatModel, device: str) -> None:
        self.optimizer, self.flat = optimizer, flat
        with tf.device(device):
            optimizer.build(self._trained())

    def _trained(self) -> list[keras.Variable]:
        return [self.flat.weights]

    @property
    def variables(self) -> list[tf.Variable]:
        """State of the optimizer: step count, learning rate, slots as long as the buffer."""
        return [v.value for v in self.optimizer.variables]

    def apply(self, gradient: tf.Tensor) -> None:
        """Update the weights with a gradient, float32 (num_padded,)."""
        self.optimizer.apply([gradient], [self.flat.weights])

    def slow_down(self) -> float:
        """Halve the learning rate and return it."""
        rate = self.optimizer.learning_rate
        rate.assign(rate / 2)
        return float(rate)


class LayerUpdate(FlatUpdate):
    """Update layer by layer by a Keras optimizer, through the model's own variables."""

    def _trained(self) -> list[keras.Variable]:
        return self.flat.model.trainable_variables

    def apply(self, gradient: tf.Tensor) -> None:
        layers = self._trained()
        weights = self.flat.slices(self.flat.weights.value.read_value())
        for variable, value in zip(layers, weights, strict=True):
            variable.assign(value)
        self.optimizer.apply(self.flat.slices(gradient), layers)
        self.flat.weights.assign(self.flat.concat([variable.value.read_value() for variable in layers]))


class FusedAdam(FlatUpdate):
    """Update by Adam as one TensorFlow kernel instead of a dozen (Kingma & Ba 2015, section 2)."""

    def apply(self, gradient: tf.Tensor) -> None:
        adam = self.optimizer
        iterations, learning_rate, momentum, velocity = self.variables
        step = tf.cast(iterations.assign_add(1), tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=self.flat.weights.value.handle,
            m=momentum.handle,
            v=velocity.handle,
            beta1_power=tf.pow(adam.beta_1, step),
            beta2_power=tf.pow(adam.beta_2, step),
            lr=learning_rate,
            beta1=adam.beta_1,
            beta2=adam.beta_2,
            epsilon=adam.epsilon,
            grad=gradient,
        )


class FusedSGD(FlatUpdate):
    """Update by SGD without momentum as one kernel."""

    def apply(self, gradient: tf.Tensor) -> None:
        iterations, learning_rate = self.variables
        iterations.assign_add(1)
        tf.raw_ops.ResourceApplyGradientDescent(
            var=self.flat.weights.value.handle, alpha=learning_rate, delta=gradient
        )


class WarmedUp(FlatUpdate):
    """Another update with a learning rate that rises linearly over its first steps.

    Args:
        update: The other update.
        start: Learning rate before the first step, as a fraction of the final one.
        num_steps: Number of steps until the final learning rate.
    """

    def __init__(self, update: FlatUpdate, start: float, num_steps: int) -> None:
        self.optimizer, self.flat = update.optimizer, update.flat
        self._update, self._start, self._num_steps = update, start, num_steps
        self._final = tf.Variable(self.optimizer.learning_rate.value, trainable=False)

    @property
    def variables(self) -> list[tf.Variable]:
        return [*self._update.variables, self._final]

    def apply(self, gradient: tf.Tensor) -> None:
        # Steps are counted by the optimizer, whose count is in every checkpoint.
        done = tf.minimum(1.0, tf.cast(self.optimizer.iterations.value, tf.float32) / self._num_steps)
        fraction = self._start + (1 - self._start) * done
        self.optimizer.learning_rate.assign(self._final * fraction)
        self._update.apply(gradient)

    def slow_down(self) -> float:
        self._final.assign(self._final / 2)
        return super().slow_down()


def update_for(optimizer: keras.Optimizer, flat: FlatModel, device: str) -> FlatUpdate:
    """Return the fastest update that equals Keras's own update layer by layer."""
    if isinstance(optimizer, keras.optimizers.Lamb | keras.optimizers.Muon) or optimizer.clipnorm:
        return LayerUpdate(optimizer, flat, device)
    # The kernels lack the options that Keras adds to every optimizer. The type is compared exactly, because
    # AdamW is a subclass of Adam.
    extras = (
        optimizer.weight_decay
        or optimizer.use_ema
        or optimizer.gradient_accumulation_steps
        or optimizer.clipvalue
        or optimizer.global_clipnorm
    )
    if type(optimizer) is keras.optimizers.Adam and not (extras or optimizer.amsgrad):
        return FusedAdam(optimizer, flat, device)
    if type(optimizer) is keras.optimizers.SGD and not (extras or optimizer.momentum):
        return FusedSGD(optimizer, flat, device)
    return FlatUpdate(optimizer, flat, device)
