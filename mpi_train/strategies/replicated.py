"""Keras models under a ``tf.distribute`` strategy: variables, and a seed of its own for each replica."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from mpi_train.models.flat import is_seed
from mpi_train.runs.run import Run
from mpi_train.runtime.errors import UsageError
from mpi_train.training.objective import Objective

_SEEDS_APART = 1_000_003
"""Difference between the seeds of neighbouring replicas."""


def require_in_scope(model: keras.Model, run: Run) -> None:
    """Raise ``UsageError`` if the model was made before the scope of the strategy was entered."""
    extended = tf.distribute.get_strategy().extended
    if not all(extended.variable_created_in_scope(variable.value) for variable in model.variables):
        raise UsageError(
            f"--model {run.config.model}: expected a function that makes a new model at each call. "
            "Got: a model that was made before the strategy began",
            remedy="make the model inside the function",
        )


def separate_seeds(states: Sequence[keras.Variable], first_replica: int = 0) -> None:
    """Give each replica of this process its own seeds for dropout and other noise.

    Args:
        states: States of the model.
        first_replica: Number of replicas in processes before this one.
    """
    for variable in states:
        if is_seed(variable):
            parts = getattr(variable.value, "values", (variable.value,))
            for number, part in enumerate(parts, first_replica):
                part.assign(part + tf.constant([number * _SEEDS_APART, 0], part.dtype))


def values_of(objective: Objective) -> Callable[[], tuple[list[tf.Tensor], list[tf.Tensor]]]:
    """Return a function that reads the weights and states of a Keras model, inside a graph."""

    def read() -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        weights = [tf.identity(variable.value) for variable in objective.model.trainable_variables]
        return weights, [tf.identity(variable.value) for variable in objective.states]

    return read
