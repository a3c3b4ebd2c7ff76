"""Keras's Adam and SGD in PyTorch, with the same settings and the same update."""

from __future__ import annotations

import math
from typing import Any

import keras
import torch
from torch import nn

from mpi_train.runtime.errors import UsageError


class Adam(torch.optim.Adam):
    """Adam that adds epsilon before the bias correction, like Keras (Kingma & Ba 2015, end of section 2)."""

    def __init__(self, parameters: list[nn.Parameter], like: keras.optimizers.Adam) -> None:
        self._like = like
        betas, rate = (like.beta_1, like.beta_2), float(like.learning_rate)
        super().__init__(parameters, lr=rate, betas=betas, eps=like.epsilon, fused=True)

    def step(self, closure: Any = None) -> Any:
        group = self.param_groups[0]
        done = self.state.get(group["params"][0], {}).get("step", 0)
        group["eps"] = self._like.epsilon / math.sqrt(1 - self._like.beta_2 ** (int(done) + 1))
        return super().step(closure)


def build(like: keras.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Return PyTorch's equivalent of the Keras optimizer ``like``, for ``model``.

    Raises:
        UsageError: there is none.
    """
    parameters = list(model.parameters())
    if type(like) is keras.optimizers.Adam:
        return Adam(parameters, like)
    if type(like) is keras.optimizers.SGD:
        return torch.optim.SGD(parameters, lr=float(like.learning_rate), fused=True)
    raise UsageError(
        f"--optimizer: expected adam or sgd, the optimizers in PyTorch. Got: {like.name}",
        remedy="one of them, or another strategy, which takes any Keras optimizer",
    )
