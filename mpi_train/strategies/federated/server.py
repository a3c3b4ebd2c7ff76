"""The server of federated learning: the model that the rounds improve, equal on every rank."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import Averaging
from mpi_train.collectives.base import all_reduce_bytes
from mpi_train.models.flat import FlatModel
from mpi_train.monitor import timeline
from mpi_train.runs.checkpoints import Arrays
from mpi_train.runs.resumable import copies
from mpi_train.runtime.world import World
from mpi_train.training.replicas import offset_seeds_by_rank
from mpi_train.training.trainer import Trainer


class Proximal(Averaging):
    """Term of FedProx: adds the gradient of ``strength / 2 * |weights - server's|^2`` to each client step."""

    def __init__(self, flat: FlatModel, strength: float) -> None:
        self._weights, self._strength = flat.weights, strength
        self.anchor = tf.Variable(flat.weights.value, trainable=False)

    def gradient(self, gradient: tf.Tensor) -> tf.Tensor:
        """Add the term."""
        return gradient + self._strength * (self._weights.value.read_value() - self.anchor.read_value())


class Server:
    """The server's model. It is also the ``State`` of the run for checkpoints.

    Args:
        trainer: Trainer of the clients on this rank.
        world: The ranks.
        momentum: Momentum of the server's step; 0 for plain averaging.

    Attributes:
        model: Flat weights and BatchNorm's statistics.
    """

    def __init__(self, trainer: Trainer, world: World, momentum: float) -> None:
        self._trainer, self._world, self._momentum = trainer, world, momentum
        self._sum = timeline.traced("all-reduce", world.sum, together=world)
        self.slow_down = trainer.update.slow_down
        flat = trainer.flat
        self._trained: list[tf.Variable] = [flat.weights.value, *flat.moving_statistics]
        self.model = [np.array(variable.numpy()) for variable in self._trained]
        self._velocity = np.zeros_like(self.model[0])
        self._variables = {
            "learning_rate": trainer.update.optimizer.learning_rate,
            **{f"states/{i}": state for i, state in enumerate(flat.states)},
        }

    def load_server_weights(self) -> None:
        """Load the server's model into the trainer."""
        for variable, value in zip(self._trained, self.model, strict=True):
            variable.assign(value)
        if isinstance(self._trainer.averaging, Proximal):
            self._trainer.averaging.anchor.assign(self.model[0])

    def begin_round(self) -> None:
        """Begin a new mean over clients."""
        self._sums = [np.zeros_like(value) for value in self.model]

    def accumulate(self, share: float) -> None:
        """Add the model in the trainer to the mean, with the weight ``share``."""
        for total, variable in zip(self._sums, self._trained, strict=True):
            total += np.float32(share) * variable.numpy()

    def end_round(self) -> int:
        """Replace the model by the mean over all ranks' clients; return the bytes that each rank sent."""
        weights, *statistics = (self._sum(total) for total in self._sums)
        self._velocity = self._momentum * self._velocity + (self.model[0] - weights)
        self.model = [self.model[0] - self._velocity if self._momentum else weights, *statistics]
        self.load_server_weights()
        return sum(all_reduce_bytes(array.nbytes, self._world.size) for array in self.model)

    def arrays(self) -> Arrays:
        """Copy the model, the velocity, the learning rate, and this rank's seeds of dropout."""
        return {
            **{f"model/{i}": np.array(value) for i, value in enumerate(self.model)},
            "velocity": np.array(self._velocity),
            **copies(self._variables),
        }

    def restore(self, arrays: Arrays, *, same_size: bool) -> None:
        """Load everything; see ``State``."""
        self.model = [np.array(arrays[f"model/{i}"]) for i in range(len(self.model))]
        self._velocity = np.array(arrays["velocity"])
        for name, variable in self._variables.items():
            variable.assign(arrays[name])
        if not same_size:
            offset_seeds_by_rank(self._world, self._trainer.flat.states)
        self.load_server_weights()
