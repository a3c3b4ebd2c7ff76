"""Keras optimizers on the flat buffer of weights.

Most optimizers treat all weights alike. An update of one long vector then equals an update of each layer,
with far fewer kernels. The few that use a layer as a whole (its norm, its singular vectors) get the layers
one by one.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
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
        """Set the final learning rate of an optimizer that has the requested one.

        Raises:
            UsageError: the optimizer has a schedule, which neither factor nor warm-up can change.
        """
        if self == LearningRate():
            return
        if follows_schedule(optimizer):
            raise UsageError(
                "--lr-scaling and --warmup-epochs expect an optimizer with a constant learning rate. "
                "Got: a model compiled with a schedule",
                remedy="--learning-rate, which replaces the schedule, or leave them out",
            )
        optimizer.learning_rate = float(optimizer.learning_rate) * self.factor


def follows_schedule(optimizer: keras.Optimizer) -> bool:
    """Return True if the learning rate of an optimizer changes from step to step by a schedule of Keras."""
    return isinstance(
        getattr(_inner(optimizer), "_learning_rate", None), keras.optimizers.schedules.LearningRateSchedule
    )


def learning_rate_of(optimizer: keras.Optimizer) -> float:
    """Return the present learning rate."""
    return float(keras.ops.convert_to_numpy(_inner(optimizer).learning_rate))


def _inner(optimizer: keras.Optimizer) -> keras.Optimizer:
    """Return the optimizer that updates the weights, within one that scales the loss."""
    return getattr(optimizer, "inner_optimizer", optimizer)


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
        """Halve the learning rate, which follows no schedule, and return it."""
        return halve_learning_rate(self.optimizer)

    def finalize(self) -> None:
        """Replace the weights by their moving average, if the optimizer keeps one, as ``fit`` does."""
        self.optimizer.finalize_variable_values(self._trained())

    def export(self, variables: Sequence[keras.Variable]) -> keras.Optimizer:
        """Return an equal optimizer of the model's ``variables``, with its state layer by layer."""
        flat = self.flat
        exported = type(self.optimizer).from_config(self.optimizer.get_config())
        exported.build(variables)
        prefix = _slot_name(flat.weights, "")
        slots = {
            v.name.removeprefix(prefix): v for v in self.optimizer.variables if v.name.startswith(prefix)
        }
        others = [v for v in self.optimizer.variables if not v.name.startswith(prefix)]
        left = list(exported.variables)
        for name, slot in slots.items():
            for variable, part in zip(variables, flat.unflatten(slot.numpy()), strict=True):
                index = [each.name for each in left].index(_slot_name(variable, name))
                left.pop(index).assign(part)
        for variable, value in zip(left, others, strict=True):
            variable.assign(value)
        return exported


def _slot_name(variable: keras.Variable, slot: str) -> str:
    """Return the name that Keras gives to an optimizer's slot for a variable."""
    return f"{variable.path}_{slot}".replace("/", "_")


def halve_learning_rate(optimizer: keras.Optimizer) -> float:
    """Halve the learning rate, which follows no schedule, and return it."""
    rate = _inner(optimizer).learning_rate
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

    def finalize(self) -> None:
        super().finalize()
        self.flat.weights.assign(self.flat.flatten([variable.numpy() for variable in self._trained()]))

    def export(self, variables: Sequence[keras.Variable]) -> keras.Optimizer:
        return self.optimizer


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

    def finalize(self) -> None:
        self._update.finalize()

    def export(self, variables: Sequence[keras.Variable]) -> keras.Optimizer:
        return self._update.export(variables)


_ELEMENTWISE = tuple(
    getattr(keras.optimizers, name)
    for name in ("Adadelta", "Adagrad", "Adam", "Adamax", "AdamW", "Ftrl", "Lion", "Nadam", "RMSprop", "SGD")
)
"""Optimizers that treat each weight by itself."""


def update_for(optimizer: keras.Optimizer, flat: FlatModel, device: str) -> FlatUpdate:
    """Return the fastest update that equals Keras's own update layer by layer."""
    inner = _inner(optimizer)
    # Types are compared exactly: a subclass may do anything.
    if (
        type(inner) not in _ELEMENTWISE
        or inner.clipnorm
        or getattr(inner, "_exclude_from_weight_decay", None)
        or getattr(inner, "_exclude_from_weight_decay_pattern", None)
        or any(variable.constraint is not None for variable in flat.model.trainable_variables)
    ):
        return LayerUpdate(optimizer, flat, device)
    # The kernels lack the options that Keras adds to every optimizer.
    extras = (
        inner is not optimizer
        or follows_schedule(inner)
        or inner.weight_decay
        or inner.use_ema
        or inner.gradient_accumulation_steps
        or inner.clipvalue
        or inner.global_clipnorm
        or inner.loss_scale_factor
    )
    if type(inner) is keras.optimizers.Adam and not (extras or inner.amsgrad):
        return FusedAdam(optimizer, flat, device)
    if type(inner) is keras.optimizers.SGD and not (extras or inner.momentum):
        return FusedSGD(optimizer, flat, device)
    return FlatUpdate(optimizer, flat, device)
