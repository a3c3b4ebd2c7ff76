"""Options of the mpi strategy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mpi_train.collectives.config import ExchangeConfig
from mpi_train.runs.config import RanksConfig
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import option

Scaling = Literal["none", "linear", "sqrt"]
_REFERENCE_BATCH = 64
"""Global batch for which ``--learning-rate`` is meant, if it is scaled with the batch."""


@dataclass(frozen=True, kw_only=True)
class MpiConfig(RanksConfig, ExchangeConfig):
    """Options of the mpi strategy."""

    lr_scaling: Scaling = option(
        "none", "growth of the learning rate with the global batch, from 64 on", changes_result=True
    )
    warmup_epochs: float = option(
        0.0, "epochs in which the learning rate rises from its value for 64", "EPOCHS", changes_result=True
    )

    def __post_init__(self) -> None:
        RanksConfig.__post_init__(self)
        ExchangeConfig.__post_init__(self)
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

    @property
    def rate_factor(self) -> float:
        """Factor of the learning rate for the global batch (Goyal et al. 2017, arXiv:1706.02677)."""
        power = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}[self.lr_scaling]
        return float((self.batch_size / _REFERENCE_BATCH) ** power)
