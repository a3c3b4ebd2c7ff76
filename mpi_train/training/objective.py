"""Keras's training step as a function of a model's weights: outputs, losses, metrics and new states.

``keras.Model.train_step`` works on the variables of the model. The loops of this package keep the weights in
a buffer of their own, so they call the same parts of Keras (the call, the compiled loss and metrics, the
losses of the layers) in a ``keras.StatelessScope``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.losses.loss import unscale_loss_for_distribution
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR, global_seed_generator

from mpi_train.data.examples import Examples
from mpi_train.models.compiling import main_metric
from mpi_train.training.inputs import first_batch

_TOLERANCE = 0.02
"""Relative error up to which a loss counts as a mean, or as a sum, over examples; bfloat16 has 8 bits."""


@dataclass(frozen=True)
class Forward:
    """Result of a forward pass over n examples.

    Attributes:
        outputs: Outputs of the model.
        mean: Sum of the losses that are means over the examples or depend on the weights alone: float32 ().
        total: Sum of the losses that are sums over the examples; None if there are none.
        states, metrics: New values of the variables in ``Objective.states`` and ``Objective.metrics``.
        weights: Values that each trainable weight had during the call, as a layer may assign to its weights.
    """

    outputs: Any
    mean: tf.Tensor
    total: tf.Tensor | None
    states: list[tf.Tensor]
    metrics: list[tf.Tensor]
    weights: list[list[tf.Tensor]]


class Objective:
    """Loss and metrics of a compiled Keras model.

    Args:
        model: The model.
        examples: Examples, of which the first few build the model, its loss and its metrics.

    Attributes:
        model, whole: Model that is called, and the compiled one, of which it may be a copy or a stage.
        optimizer: Optimizer that the model was compiled with.
        states: Keras variables that are not trained: statistics, seeds, counters.
        metrics: Keras variables of the metrics, all of them sums over examples.
        initial: Values of ``metrics`` before the first example.
        couples: True if the loss of a batch is neither a mean nor a sum over its examples.
        assigns: True if a call assigns to trainable weights.
        main_metric: Name of the metric by which runs are compared, and True if it should grow.
        judges: False for a stage whose outputs go to another one: only the losses of its layers count.
    """

    def __init__(self, model: keras.Model, examples: Examples) -> None:
        self.model = self.whole = model
        self.optimizer = model.optimizer
        self._x, self._y = x, y = first_batch(examples)
        outputs = self.call(x, training=False)  # builds a subclassed model
        model.compute_metrics(x, y, outputs, None)  # builds the metrics
        model.compute_loss(x, y, outputs, None)
        model.reset_metrics()
        self._compiled_loss, self._compiled_metrics = model._compile_loss, model._compile_metrics
        has_own_loss = type(model).compute_loss is not keras.Model.compute_loss
        self._own_loss = model._compute_loss if has_own_loss else None
        self._metrics = [metric for metric in model.metrics if metric is not model._loss_tracker]
        self.metrics: list[keras.Variable] = [v for metric in self._metrics for v in metric.variables]
        self.initial = [np.array(variable.numpy()) for variable in self.metrics]
        places = {id(variable): place for place, variable in enumerate(self.metrics)}
        trackers = self._compiled_loss.metrics if self._compiled_loss is not None else []
        self._trackers = [(places[id(mean.total)], places[id(mean.count)]) for mean in trackers]
        self.states: list[keras.Variable] = list(model.non_trainable_variables)
        self.main_metric = main_metric(model)
        self.judges = True
        self._look(x, y)

    def of_copy(self, model: keras.Model) -> Objective:
        """Return the objective of a copy of the model, with the same compiled loss and metrics."""
        return self._with(model, self._x, judges=True)

    def of_stage(self, stage: keras.Model, *, is_last: bool) -> Objective:
        """Return the objective of a stage of the model, whose outputs are those of the model in the last."""
        inputs, first = stage.inputs[0].shape[1:], self._x
        if tuple(inputs) != tuple(first.shape[1:]):
            first = tf.random.normal((first.shape[0], *inputs))
        return self._with(stage, first, judges=is_last)

    def _with(self, model: keras.Model, x: Any, *, judges: bool) -> Objective:
        part = copy.copy(self)
        part.model, part.states, part.judges = model, list(model.non_trainable_variables), judges
        part._look(x, self._y)
        return part

    def call(self, x: Any, *, training: bool) -> Any:
        """Call the model, on its own variables or those of the scope, as ``fit`` does."""
        if self.model._call_has_training_arg:
            return self.model(x, training=training)
        return self.model(x)

    def _added(self, x: Any, y: Any, outputs: Any, *, training: bool) -> list[tf.Tensor]:
        """Return the losses of layers and weights after a call, or that of an own ``compute_loss``."""
        if self._own_loss is not None:
            return [self._own_loss(x=x, y=y, y_pred=outputs, sample_weight=None, training=training)]
        return [tf.reduce_sum(loss) for loss in self.model.losses]

    def _compiled(self, y: Any, outputs: Any) -> list[tf.Tensor]:
        """Return the compiled loss of the outputs, if there is one."""
        if self._own_loss is not None or not self.judges or self._compiled_loss is None:
            return []
        loss = self._compiled_loss(y, outputs)
        # Within the step of a replica Keras divides a mean by the number of replicas.
        return [loss if 0 in self._sums else unscale_loss_for_distribution(loss)]

    def _forward(self, outputs: Any, losses: Sequence[tf.Tensor], scope: _TapedScope) -> Forward:
        losses = [tf.cast(loss, tf.float32) for loss in losses]
        sums = [loss for number, loss in enumerate(losses) if number in self._sums]
        means = [loss for number, loss in enumerate(losses) if number not in self._sums]
        return Forward(
            outputs,
            mean=tf.add_n(means) if means else tf.constant(0.0),
            total=tf.add_n(sums) if sums else None,
            states=[scope.get_current_value(variable) for variable in self.states],
            metrics=[scope.get_current_value(variable) for variable in self.metrics],
            weights=[scope.versions[id(variable)] for variable in self.model.trainable_variables],
        )

    def forward(
        self,
        x: Any,
        y: Any,
        weights: Sequence[tf.Tensor],
        states: Sequence[tf.Tensor],
        metrics: Sequence[tf.Tensor],
        *,
        training: bool,
        tape: tf.GradientTape | None = None,
    ) -> Forward:
        """Call the model, its loss and its metrics as functions of all their variables.

        Args:
            x, y: Inputs and targets.
            weights, states, metrics: Values of the trainable weights, of ``states`` and of ``metrics``.
            training: True to train, False to evaluate.
            tape: Tape that must watch the weights that the call assigns.
        """
        variables = [*self.model.trainable_variables, *self.states, *self.metrics]
        scope = _TapedScope(list(zip(variables, [*weights, *states, *metrics], strict=True)), tape)
        with scope:
            outputs = self.call(x, training=training)
            losses = self._compiled(y, outputs) + self._added(x, y, outputs, training=training)
            self._count(y, outputs)
        return self._forward(outputs, losses, scope)

    def forward_in_place(self, x: Any, y: Any, metrics: Sequence[tf.Tensor]) -> Forward:
        """Call the model to train it, on its own variables, which the call may change; see ``forward``."""
        weights = [
            (v, tf.convert_to_tensor(v.value)) for v in (*self.model.trainable_variables, *self.states)
        ]
        self.share_generator()
        outputs = self.call(x, training=True)
        added = self._added(x, y, outputs, training=True)
        scope = _TapedScope([*weights, *zip(self.metrics, metrics, strict=True)], tape=None)
        with scope:
            losses = self._compiled(y, outputs) + added
            self._count(y, outputs)
        return self._forward(outputs, losses, scope)

    def share_generator(self) -> None:
        """Let this thread draw numbers without a seed from the generator that the run began with.

        Keras has one a thread, and a replica of a TensorFlow strategy is traced in a thread of its own.
        """
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, self._generator)

    def _count(self, y: Any, outputs: Any) -> None:
        """Add examples to the compiled metrics."""
        if self.judges and self._compiled_metrics is not None:
            self._compiled_metrics.update_state(y, outputs)

    def results(self, sums: Sequence[float]) -> dict[str, float]:
        """Return the metrics by name, given the growth of all ``metrics``, over all ranks, concatenated."""
        ends = np.cumsum([value.size for value in self.initial], dtype=int)
        for variable, value, part in zip(
            self.metrics, self.initial, np.split(np.array(sums), ends[:-1]), strict=False
        ):
            variable.assign(value + part.reshape(value.shape))
        results: dict[str, float] = {}
        for metric in self._metrics:
            result = metric.result()
            results.update(result if isinstance(result, dict) else {metric.name: result})
            metric.reset_state()
        arrays = {name: np.ravel(keras.ops.convert_to_numpy(value)) for name, value in results.items()}
        return {
            name if array.size == 1 else f"{name}_{number}": float(value)  # such as F1 of each class
            for name, array in arrays.items()
            for number, value in enumerate(array)
        }

    def counted(
        self, share: tf.Tensor, new: Sequence[tf.Tensor], old: Sequence[tf.Tensor]
    ) -> list[tf.Tensor]:
        """Return the metrics after a part of a batch: the ``new`` ones, or the ``old`` ones if none counts.

        The loss of each of several outputs counts by the ``share``: Keras takes its mean over batches.
        """
        counts = tf.get_static_value(share)
        if counts:
            after = list(new)
        else:
            after = [tf.where(share > 0, value, before) for value, before in zip(new, old, strict=True)]
        for total, count in self._trackers:
            mean = (new[total] - old[total]) / (new[count] - old[count])
            after[total], after[count] = old[total] + share * mean, old[count] + share
        return after

    def growth(self, metrics: Sequence[tf.Tensor]) -> np.ndarray:
        """Return by how much the values of ``metrics`` exceed the initial ones: float64 (n,)."""
        values = zip(metrics, self.initial, strict=True)
        return np.concatenate([np.zeros(0), *(np.ravel(new.numpy() - old) for new, old in values)])

    def _look(self, x: Any, y: Any) -> None:
        """Try out which variables a call uses, and how each loss depends on the examples."""
        model = self.model
        self._sums: set[int] = set()
        values = [(variable, variable.value) for variable in model.variables]
        before = {id(variable): value for variable, value in values}
        with keras.StatelessScope(values, collect_losses=True) as scope:
            self.call(x, training=True)
        current = scope.get_current_value
        self.assigns = any(current(v) is not before[id(v)] for v in model.trainable_variables)
        self._generator = global_seed_generator()
        unseeded = self._generator.state
        if current(unseeded) is not None:
            self.states.append(unseeded)
        count = tf.nest.flatten(x)[0].shape[0]
        tried: list[list[float]] = []
        for part in (slice(3), slice(3, count), slice(count)) if count > 3 else ():
            some_x, some_y = tf.nest.map_structure(lambda array, part=part: array[part], (x, y))
            with keras.StatelessScope(values, collect_losses=True):
                outputs = self.call(some_x, training=False)
                losses = self._compiled(some_y, outputs) + self._added(
                    some_x, some_y, outputs, training=False
                )
                tried.append([float(loss) for loss in losses])
        self.couples = False
        for number, (few, rest, all_) in enumerate(zip(*tried, strict=True)):
            tolerance = _TOLERANCE * abs(all_) + 1e-6
            if abs((3 * few + (count - 3) * rest) / count - all_) <= tolerance:
                continue
            if abs(few + rest - all_) <= tolerance:
                self._sums.add(number)
            else:
                self.couples = True


class _TapedScope(keras.StatelessScope):
    """Scope in which weights that a call assigns get gradients from there on, as in ``fit``."""

    def __init__(self, mapping: list[tuple[keras.Variable, tf.Tensor]], tape: tf.GradientTape | None) -> None:
        super().__init__(mapping, collect_losses=True)
        self._tape = tape
        self.versions = {id(variable): [value] for variable, value in mapping if variable.trainable}

    def add_update(self, update: tuple[keras.Variable, tf.Tensor]) -> None:
        variable, value = update
        if id(variable) in self.versions:
            value = tf.stop_gradient(value)
            if self._tape is not None:
                self._tape.watch(value)
            self.versions[id(variable)].append(value)
        super().add_update((variable, value))
