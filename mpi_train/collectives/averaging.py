"""What the ranks average, and when: the one place where MPI data parallelism differs from one process.

With plain or momentum SGD, averaging the gradients before the update and averaging the weights after
it are the same arithmetic, because the update is linear in the gradient. Adam divides by a running
root mean square, which every rank takes of its own gradients under ``Weights``: the two then differ.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from mpi_train.collectives.traffic import Traffic
from mpi_train.runtime.world import World

if TYPE_CHECKING:
    from mpi_train.models.optimizers import FlatUpdate


class Held(Protocol):
    """An array that lasts from step to step, as TensorFlow's variables do."""

    def numpy(self) -> np.ndarray: ...

    def assign(self, value: np.ndarray) -> Any: ...


class AllReduce(ABC):
    """Replaces a vector by what stands for its mean over the ranks, inside a graph; counts what it takes.

    Attributes:
        variables: What lasts from step to step, of this rank, by name.
    """

    variables: Mapping[str, Held] = MappingProxyType({})

    @abstractmethod
    def __call__(self, vector: tf.Tensor) -> tf.Tensor: ...

    @property
    @abstractmethod
    def total_s(self) -> float:
        """Seconds in exchanges so far, waiting included."""

    @abstractmethod
    def take_traffic(self, world: World) -> Traffic:
        """What there was since this was last called; on all ranks of ``world`` together."""


class Nothing:
    """For a process on its own."""

    def attach(self, update: FlatUpdate) -> None:
        """Called once, before any graph is made, with what updates the weights."""

    @property
    def variables(self) -> Mapping[str, Held]:
        """What lasts from step to step beside the weights, of this rank, by name; for checkpoints."""
        return {}

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first step of an epoch, counted from 1, or of the rest of one."""

    def layers(self, gradients: list[tf.Tensor]) -> None:
        """Called before ``gradient``, with the local gradients of the layers, where a step has one part."""

    def gradient(self, gradient: tf.Tensor) -> tf.Tensor:
        """Called with the local gradient; what it returns is applied."""
        return gradient

    def weights(self, weights: keras.Variable, step: tf.Tensor, is_last: tf.Tensor) -> None:
        """Called after the update.

        Args:
            weights: The flat buffer.
            step: int32, steps of this epoch before this one.
            is_last: bool, whether the epoch ends here; ranks must then be equal.
        """

    def finish(self) -> None:
        """Called after a chunk of steps, in its time: nothing may be under way when it returns."""

    def take_traffic(self, world: World) -> Traffic:
        """What there was since this was last called; on all ranks together."""
        return Traffic()

    def exchange_s(self) -> float:
        """Seconds in exchanges so far, waiting included: it only grows. NaN where there are none."""
        return math.nan


class Averaging(Nothing):
    """What those have in common that average."""

    beside: Sequence[AllReduce] = ()
    """All-reduces within the model, whose traffic counts too."""

    def __init__(self, all_reduce: AllReduce) -> None:
        self._all_reduce = all_reduce

    @property
    def variables(self) -> Mapping[str, Held]:
        return self._all_reduce.variables

    def take_traffic(self, world: World) -> Traffic:
        return sum((each.take_traffic(world) for each in (self._all_reduce, *self.beside)), Traffic())

    def exchange_s(self) -> float:
        return sum(each.total_s for each in (self._all_reduce, *self.beside))


class Gradients(Averaging):
    """Averages the gradients before each update: the ranks' weights and optimizer slots stay equal."""

    def gradient(self, gradient: tf.Tensor) -> tf.Tensor:
        return self._all_reduce(gradient)


class Weights(Averaging):
    """Averages the weights after every ``every`` updates, and at the end of an epoch.

    Optimizer slots stay each rank's own. ``every`` above 1 is local SGD (Stich 2019, arXiv:1805.09767); after
    some epochs in which every step is averaged, post-local SGD (Lin et al. 2020, arXiv:1808.07217).

    Args:
        all_reduce: Over the flat buffer.
        every: Steps between two averages.
        local_from: The first epoch in which that is above 1.
    """

    def __init__(self, all_reduce: AllReduce, every: int = 1, local_from: int = 1) -> None:
        super().__init__(all_reduce)
        self._every, self._local_from = every, local_from
        self._period = tf.Variable(every, trainable=False)

    def begin_epoch(self, epoch: int) -> None:
        self._period.assign(self._every if epoch >= self._local_from else 1)

    def weights(self, weights: keras.Variable, step: tf.Tensor, is_last: tf.Tensor) -> None:
        if self._every == 1:
            self.average(weights)
        else:
            due = tf.logical_or((step + 1) % self._period == 0, is_last)
            tf.cond(due, lambda: self.average(weights), tf.no_op)

    def average(self, weights: keras.Variable) -> tf.Operation:
        """Averages now, inside a graph."""
        return weights.value.assign(self._all_reduce(weights.value.read_value()), read_value=False)


class WeightsAndSlots(Weights):
    """Averages the optimizer's slots with the weights, so that a rank has no state of its own.

    Three times the bytes with Adam. Where the slots are linear in the gradients (momentum) it is the
    arithmetic of one process; Adam's second moments become the mean of the ranks' own.

    Args:
        make_all_reduce: Gives one for a length in float32 numbers.
        every, local_from: As for ``Weights``.
    """

    def __init__(
        self, make_all_reduce: Callable[[int], AllReduce], every: int = 1, local_from: int = 1
    ) -> None:
        self._make_all_reduce = make_all_reduce
        self._every, self._local_from = every, local_from
        self._period = tf.Variable(every, trainable=False)

    def attach(self, update: FlatUpdate) -> None:
        self._slots = [slot for slot in update.variables if slot.dtype == tf.float32 and slot.shape.rank]
        self._sizes = [update.flat.num_padded, *(slot.shape.num_elements() for slot in self._slots)]
        self._all_reduce = self._make_all_reduce(sum(self._sizes))

    def average(self, weights: keras.Variable) -> tf.Operation:
        variables = [weights.value, *self._slots]
        mean = self._all_reduce(tf.concat([tf.reshape(v.read_value(), [-1]) for v in variables], 0))
        pieces = tf.split(mean, self._sizes)
        return tf.group(
            *(
                variable.assign(tf.reshape(piece, variable.shape), read_value=False)
                for variable, piece in zip(variables, pieces, strict=True)
            )
        )
