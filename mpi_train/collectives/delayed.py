"""The ranks' mean comes a step late, while the next one computes, and what it missed is kept.

Of the weights w' that a rank had after the last step the mean m is known after this one, which has taken it
to w meanwhile: it goes on from w + (m - w'). So the all-reduce has a whole step's time before anyone waits
for it (Zhou et al. 2020, "DaSGD: Squeezing SGD Parallelization Performance in Distributed Training Using
Delayed Averaging", arXiv:2006.00441; like it, Wang et al. 2020, "Overlap Local-SGD", arXiv:2002.09539).
"""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import AllReduce, Held, Weights
from mpi_train.collectives.background import Background
from mpi_train.collectives.base import HostArray
from mpi_train.collectives.host_call import HostCall
from mpi_train.collectives.traffic import Traffic
from mpi_train.monitor import timeline
from mpi_train.runtime.aligned import aligned_empty
from mpi_train.runtime.world import World


class Delayed(Weights):
    """Ranks' weights differ within an epoch; at its end all have their mean, and nothing is under way.

    Args:
        all_reduce: For that, over the flat buffer.
        world: The ranks.
        length: Of the buffer, in float32 numbers.

    Raises:
        PlatformError: as ``Background``.
    """

    def __init__(self, all_reduce: AllReduce, world: World, length: int) -> None:
        super().__init__(all_reduce)
        # Where nothing was handed over both are 0, and there is nothing to correct.
        self._handed, self._mean = np.zeros((2, length), np.float32)
        # TensorFlow may update weights where they lie: what it gets is not what MPI reads.
        self._corrected = [aligned_empty((length,), np.float32) for _ in range(2)]
        self._background = Background(world, [(self._handed, self._mean)])
        self._call = HostCall(self._step)
        self._wait = timeline.traced("all-reduce", self._background.wait)
        self._correct = timeline.traced("unpack", self._put_right)

    @property
    def variables(self) -> Mapping[str, Held]:
        mine = {"handed": HostArray(self._handed), "mean": HostArray(self._mean)}
        return {**super().variables, **mine}

    def finish(self) -> None:
        self._call.timed(self._wait)

    def weights(self, weights: keras.Variable, step: tf.Tensor, is_last: tf.Tensor) -> None:
        corrected = self._call([weights.value.read_value(), is_last], weights.value.shape)
        weights.value.assign(corrected, read_value=False)
        tf.cond(is_last, lambda: self.average(weights), tf.no_op)

    def take_traffic(self, world: World) -> Traffic:
        called_s = float(self._call.take_durations().sum())
        return super().take_traffic(world) + self._background.take_traffic(world, called_s)

    def exchange_s(self) -> float:
        return super().exchange_s() + self._call.total_s

    def _step(self, weights: np.ndarray, is_last: np.ndarray) -> np.ndarray:
        self._wait()
        corrected = self._correct(weights, bool(is_last))
        if not is_last:
            self._background.start()
        return corrected

    def _put_right(self, weights: np.ndarray, is_last: bool) -> np.ndarray:
        self._corrected.reverse()
        corrected = self._corrected[0]
        np.subtract(self._mean, self._handed, out=corrected)
        np.add(corrected, weights, out=corrected)
        if is_last:
            self._handed.fill(0)
            self._mean.fill(0)
        else:
            np.copyto(self._handed, corrected)
        return corrected
