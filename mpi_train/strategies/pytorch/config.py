"""Options of the strategy ddp."""

from __future__ import annotations

from dataclasses import dataclass

from mpi_train.runs.config import RanksConfig
from mpi_train.runtime.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DdpConfig(RanksConfig):
    """Options of the strategy ddp, whose loss is PyTorch's cross-entropy and whose metric is the accuracy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, value in (("--loss", self.loss), ("--metrics", self.metrics)):
            if value is not None:
                raise UsageError(
                    f"{flag}: expected none, as ddp trains PyTorch's cross-entropy and counts the accuracy. "
                    f"Got: {value}",
                    remedy=f"leave {flag} out, or another strategy",
                )
        if self.dtype == "float16":
            raise UsageError(
                "--dtype: expected float32 or bfloat16, as PyTorch on the CPU. Got: float16",
                remedy="one of them, or another strategy",
            )
