"""Averaging policies: average gradients before the update, weights after it, or weights and optimizer slots.

With plain or momentum SGD, averaging the gradients before the update and averaging the weights after it are
the same arithmetic, because the update is linear in the gradient. Adam divides by a running root mean square,
which under ``Weights`` every rank computes from its own gradients: the two then differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from mpi_train.collectives.base import AllReduce, StateArray
from mpi_train.collectives.config import ExchangeConfig
from mpi_train.collectives.exchange_log import ExchangeLog, Traffic
from mpi_train.collectives.registry import COLLECTIVES
from mpi_train.models.flat import FlatModel
from mpi_train.runtime.world import World

if TYPE_CHECKING:
    from mpi_train.models.optimizers import FlatUpdate


@dataclass(frozen=True)
class Context:
    """Arguments from which a collective's factory makes its averaging policy.

    Attributes:
        world: At least two ranks.
        exact: Function that makes the collective's all-reduce for a vector length, in float32 numbers.
    """

    config: ExchangeConfig
    world: World
    flat: FlatModel
    seed: int
    exact: Callable[[int], AllReduce]


class Averaging:
    """Hooks of the training loop, none of which does anything here, and figures about the exchange.

    Attributes:
        within_model: Further all-reduces, inside the model, whose traffic counts too.
        background: Logs of exchanges that overlap with computation.
    """

    all_reduces: Sequence[AllReduce] = ()
    within_model: Sequence[AllReduce] = ()
    background: Sequence[ExchangeLog] = ()

    def attach(self, update: FlatUpdate) -> None:
        """Take the update of the weights; called once, before any graph is made."""

    @property
    def variables(self) -> Mapping[str, StateArray]:
        """State of this rank, besides the weights, that lasts from step to step, by name; for checkpoints."""
        return {name: array for each in self.all_reduces for name, array in each.variables.items()}

    def begin_epoch(self, epoch: int) -> None:
        """Prepare the epoch (counted from 1), or the rest of it; called before its first step."""

    def layers(self, gradients: list[tf.Tensor]) -> None:
        """Take the local gradients by layer; called before ``gradient`` in steps that have one part."""

    def gradient(self, gradient: tf.Tensor) -> tf.Tensor:
        """Return the gradient to apply, given the local one."""
        return gradient

    def weights(self, weights: keras.Variable, step: tf.Tensor, is_last: tf.Tensor) -> None:
        """Average the weights if they are due; called after the update.

        Args:
            weights: The flat buffer.
            step: int32, number of steps before this one in the epoch.
            is_last: bool, True in the last step of an epoch, after which the ranks must be equal.
        """

    def finish(self) -> None:
        """Complete exchanges that are still running; called after a chunk of steps, in its time."""

    @property
    def logs(self) -> Sequence[ExchangeLog]:
        """Logs of all exchanges."""
        return [*(each.log for each in (*self.all_reduces, *self.within_model)), *self.background]

    def take_traffic(self, world: World) -> Traffic:
        """Return the traffic since this was last called, on all ranks together."""
        return sum((log.take_traffic(world) for log in self.logs), Traffic())

    def exchange_s(self) -> float:
        """Seconds in exchanges so far, waiting included; NaN if there are none."""
        return sum(log.total_s for log in self.logs) if self.logs else math.nan


class NoAveraging(Averaging):
    """Policy of a single process."""


class Gradients(Averaging):
    """Average the gradients before each update: the ranks' weights and optimizer slots stay equal."""

    def __init__(self, all_reduce: AllReduce) -> None:
        self.all_reduces = [all_reduce]

    def gradient(self, gradient: tf.Tensor) -> tf.Tensor:
        return self.all_reduces[0](gradient)


class Weights(Averaging):
    """Average the weights after every ``every`` updates, and at the end of an epoch.

    Optimizer slots stay each rank's own. ``every`` above 1 is local SGD (Stich 2019, arXiv:1805.09767). With
    ``local_from``, the first epoch in which ``every`` applies, it is post-local SGD (Lin et al. 2020,
    arXiv:1808.07217): before that epoch, each step is averaged.
    """

    def __init__(self, *all_reduces: AllReduce, every: int = 1, local_from: int = 1) -> None:
        self.all_reduces = all_reduces
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
        """Average now, inside a graph."""
        return weights.value.assign(self.all_reduces[0](weights.value.read_value()), read_value=False)


class WeightsAndSlots(Weights):
    """Average the optimizer's slots with the weights, so that a rank has no state of its own.

    With Adam this sends three times the bytes. If the slots are linear in the gradients (momentum), it is the
    arithmetic of one process; Adam's second moments become the mean of the ranks' own.
    """

    def __init__(self, make_all_reduce: Callable[[int], AllReduce], **periods: int) -> None:
        super().__init__(**periods)
        self._make_all_reduce = make_all_reduce

    def attach(self, update: FlatUpdate) -> None:
        self._slots = [slot for slot in update.variables if slot.dtype == tf.float32 and slot.shape.rank]
        length = update.flat.num_padded + sum(slot.shape.num_elements() for slot in self._slots)
        self.all_reduces = [self._make_all_reduce(length)]

    def average(self, weights: keras.Variable) -> tf.Operation:
        variables = [weights.value, *self._slots]
        means = self.all_reduces[0].jointly([variable.read_value() for variable in variables])
        pairs = zip(variables, means, strict=True)
        return tf.group(*(variable.assign(mean, read_value=False) for variable, mean in pairs))


def make(context: Context) -> Averaging:
    """Make the policy that ``--average`` names."""
    config = context.config
    assert config.every is not None
    if config.average == "weights+slots":
        return WeightsAndSlots(context.exact, every=config.every, local_from=config.post_local_from)
    all_reduce = context.exact(context.flat.num_padded)
    if config.average == "gradients":
        return Gradients(all_reduce)
    return Weights(all_reduce, every=config.every, local_from=config.post_local_from)


def build(config: ExchangeConfig, world: World, flat: FlatModel, *, seed: int) -> Averaging:
    """Make the averaging policy that ``--collective`` and ``--average`` name, on all ranks together.

    Raises:
        PlatformError: these ranks cannot exchange in the requested way; on all of them.
    """
    if world.size == 1:
        return NoAveraging()
    entry = COLLECTIVES[config.collective]
    exact = partial(resolve_name(entry.all_reduce), world)
    policy: Averaging = resolve_name(entry.factory)(Context(config, world, flat, seed, exact))
    return policy
