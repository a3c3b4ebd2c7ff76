"""Delayed averaging: the all-reduce of one step overlaps with the computation of the next step.

The mean m of the weights w' after one step is known after the next step, which meanwhile has taken the rank
to w. The rank continues from w + (m - w'), so its local progress is kept. An all-reduce has the time of a
whole step before a rank waits for it (Zhou et al. 2020, "DaSGD", arXiv:2006.00441; similar: Wang et al. 2020,
"Overlap Local-SGD", arXiv:2002.09539).
"""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import Context, Weights
from mpi_train.collectives.background import Background
from mpi_train.collectives.base import HostArray, StateArray, two_buffers
from mpi_train.collectives.host_call import HostCall


class Delayed(Weights):
    """Average weights one step late. At the end of an epoch all ranks have their mean, and nothing runs.

    Raises:
        PlatformError: as ``Background``.
    """

    def __init__(self, context: Context) -> None:
        length = context.flat.num_padded
        super().__init__(context.exact(length))
        # Both are 0 if nothing was sent, so that there is nothing to correct.
        self._sent, self._mean = np.zeros((2, length), np.float32)
        # TensorFlow may update weights in place, so it must not get the array that MPI reads.
        self._corrected = two_buffers(length)
        self._background = log = Background(context.world, [(self._sent, self._mean)])
        self.background = [log]
        self._wait = log.part("all-reduce", log.wait)
        self._correct = log.part("unpack", self._add_correction)
        self._call, self._finish = HostCall(self._step, log), log.call(self._wait)

    @property
    def variables(self) -> Mapping[str, StateArray]:
        return {**super().variables, "handed": HostArray(self._sent), "mean": HostArray(self._mean)}

    def finish(self) -> None:
        self._finish()

    def weights(self, weights: keras.Variable, step: tf.Tensor, is_last: tf.Tensor) -> None:
        corrected = self._call([weights.value.read_value(), is_last], weights.value.shape)
        weights.value.assign(corrected, read_value=False)
        tf.cond(is_last, lambda: self.average(weights), tf.no_op)

    def _step(self, weights: np.ndarray, is_last: np.ndarray) -> np.ndarray:
        self._wait()
        corrected = self._correct(weights, bool(is_last))
        if not is_last:
            self._background.start()
        return corrected

    def _add_correction(self, weights: np.ndarray, is_last: bool) -> np.ndarray:
        """Return w + (m - w'), and keep it as what is sent next."""
        corrected = next(self._corrected)
        np.subtract(self._mean, self._sent, out=corrected)
        np.add(corrected, weights, out=corrected)
        if is_last:
            self._sent.fill(0)
            self._mean.fill(0)
        else:
            np.copyto(self._sent, corrected)
        return corrected
