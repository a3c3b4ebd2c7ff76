"""State of a Keras model and its optimizer for checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import keras

from mpi_train.runs.checkpoints import Arrays
from mpi_train.runs.resumable import copies


class KerasState:
    """Variables of a model and its optimizer, both built; ``scope`` is the context that made them."""

    def __init__(
        self, model: keras.Model, optimizer: keras.Optimizer, scope: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self._optimizer, self._scope = optimizer, scope
        self._variables = {
            **{f"model/{i}": variable for i, variable in enumerate(model.variables)},
            **{f"optimizer/{i}": variable for i, variable in enumerate(optimizer.variables)},
        }

    def arrays(self) -> Arrays:
        return copies(self._variables)

    def restore(self, arrays: Arrays, *, same_size: bool) -> None:
        with self._scope():
            for name, variable in self._variables.items():
                variable.assign(arrays[name])

    def slow_down(self) -> float:
        with self._scope():
            rate = self._optimizer.learning_rate
            rate.assign(rate / 2)
        return float(rate)
