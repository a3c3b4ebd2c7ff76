"""Options of the mpi strategy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from mpi_train.collectives.registry import WAYS, names
from mpi_train.runs.config import RanksConfig
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import at_least, flag_of, option

Average = Literal["weights", "gradients", "weights+slots"]
Scaling = Literal["none", "linear", "sqrt"]
_REFERENCE_BATCH = 64
"""Global batch for which ``--learning-rate`` is meant, if it is scaled with the batch."""


def _help() -> str:
    def described(*, changes_result: bool) -> str:
        return "; ".join(f"{name}: {WAYS[name].text}" for name in names(changes_result=changes_result))

    return (
        f"exchange between ranks. With the same result: {described(changes_result=False)}. With another "
        f"result: {described(changes_result=True)}"
    )


@dataclass(frozen=True, kw_only=True)
class MpiConfig(RanksConfig):
    """Options of the mpi strategy."""

    average: Average | None = option(
        None,
        "weights after an update, gradients before it, or weights and optimizer slots (default: weights; "
        "gradients for a --collective that averages gradients only)",
        changes_result=True,
    )
    collective: str = option(
        "auto",
        _help,
        choices=lambda: tuple(WAYS),
        changes_result=lambda name: name if WAYS[name].changes_result else None,
    )
    every: int | None = option(
        None,
        "steps between two averages, not for gradients; above 1 is local SGD (default: 1; diloco: 32)",
        changes_result=True,
    )
    post_local_from: int = option(
        1,
        "first epoch in which --every counts; earlier ones average every step (post-local SGD)",
        "EPOCH",
        changes_result=True,
    )
    accumulate: int = option(
        1,
        "parts in which a rank computes its examples of a step, one after another, to save memory",
        changes_result=True,
    )
    sync_batchnorm: bool = option(
        False, "normalise over the global batch instead of the part of each rank", changes_result=True
    )
    lr_scaling: Scaling = option(
        "none", "growth of the learning rate with the global batch, from 64 on", changes_result=True
    )
    warmup_epochs: float = option(
        0.0, "epochs in which the learning rate rises from its value for 64", "EPOCHS", changes_result=True
    )
    powersgd_rank: int = option(
        4, "rank of the low-rank gradient approximation (powersgd)", "RANK", changes_result=True
    )
    topk_fraction: float = option(
        0.03,
        "fraction of gradient entries to send (topk)",
        changes_result=True,
        formerly="--topk-part",
    )
    outer_rate: float = option(
        0.7, "learning rate of the outer optimizer (diloco)", "RATE", changes_result=True
    )
    outer_momentum: float = option(
        0.9, "Nesterov momentum of the outer optimizer (diloco)", "BETA", changes_result=True
    )
    autotune: bool = option(False, "measure the exact all-reduces first, and take the fastest")

    def __post_init__(self) -> None:
        super().__post_init__()
        # Defaults that follow from the collective become values here, so that nothing else has to know them.
        way = WAYS[self.collective]
        if self.average is None:
            object.__setattr__(self, "average", way.averages[0])
        if self.every is None:
            object.__setattr__(self, "every", way.every)
        assert self.every is not None
        at_least("--every", self.every, 1)
        self._check_collective()
        at_least("--post-local-from", self.post_local_from, 1)
        at_least("--accumulate", self.accumulate, 1)
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise UsageError(
                f"--warmup-epochs: expected 0 to --epochs {self.epochs}. Got: {self.warmup_epochs:g}"
            )
        if self.warmup_epochs and self.lr_scaling == "none":
            raise UsageError(
                f"--warmup-epochs requires a scaled learning rate. Got: --warmup-epochs "
                f"{self.warmup_epochs:g}, --lr-scaling none",
                remedy="--lr-scaling linear, or leave --warmup-epochs out",
            )
        if self.post_local_from > 1 and self.every == 1:
            raise UsageError("--post-local-from requires --every greater than 1. Got: --every 1")
        if self.average == "gradients" and self.every != 1:
            raise UsageError(
                f"--every: gradients are averaged at every step. Got: --every {self.every}",
                remedy="--average weights, or leave --every out",
            )

    def _check_collective(self) -> None:
        way, name = WAYS[self.collective], self.collective
        if self.average not in way.averages:
            raise UsageError(
                f"--average: expected {' or '.join(way.averages)} with --collective {name}. "
                f"Got: {self.average}",
                remedy="leave --average out",
            )
        if self.every != 1 and not way.local:
            raise UsageError(
                f"--every: --collective {name} exchanges at every step. Got: --every {self.every}",
                remedy="leave --every out",
            )
        if name == "buckets" and (self.accumulate > 1 or self.sync_batchnorm):
            flag = "--accumulate" if self.accumulate > 1 else "--sync-batchnorm"
            raise UsageError(
                f"--collective buckets averages layers while others are computed, and cannot be combined "
                f"with {flag}",
                remedy=f"--collective plain, or leave {flag} out",
            )
        if name == "diloco" and self.post_local_from > 1:
            raise UsageError(
                f"--post-local-from cannot be combined with --collective diloco. Got: {self.post_local_from}",
                remedy="leave it out",
            )
        if self.autotune and name != "auto":
            raise UsageError(
                f"--autotune chooses the collective itself. Got: --collective {name}",
                remedy="leave one of them out",
            )
        at_least("--powersgd-rank", self.powersgd_rank, 1)
        if not 0 < self.topk_fraction <= 1:
            raise UsageError(f"--topk-fraction: expected more than 0, at most 1. Got: {self.topk_fraction:g}")
        if not 0 < self.outer_rate < float("inf"):
            raise UsageError(f"--outer-rate: expected more than 0. Got: {self.outer_rate:g}")
        if not 0 <= self.outer_momentum < 1:
            raise UsageError(f"--outer-momentum: expected 0 to below 1. Got: {self.outer_momentum:g}")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for other, its in WAYS.items():
            for setting in set(its.parameters) - set(way.parameters):
                if getattr(self, setting) != defaults[setting]:
                    raise UsageError(
                        f"{flag_of(setting)} applies to --collective {other} only. Got: --collective {name}",
                        remedy=f"--collective {other}, or leave it out",
                    )

    @property
    def exchange(self) -> dict[str, Any]:
        """Settings of the exchange that change the result, besides ``average`` and ``every``."""
        if not WAYS[self.collective].changes_result:
            return {}
        parameters = WAYS[self.collective].parameters
        return {"collective": self.collective, **{name: getattr(self, name) for name in parameters}}

    @property
    def rate_factor(self) -> float:
        """Factor of the learning rate for the global batch (Goyal et al. 2017, arXiv:1706.02677)."""
        power = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}[self.lr_scaling]
        return float((self.batch_size / _REFERENCE_BATCH) ** power)
