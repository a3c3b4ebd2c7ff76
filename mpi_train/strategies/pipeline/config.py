"""Options of the pipeline strategy."""

from __future__ import annotations

from dataclasses import dataclass

from mpi_train.runs.config import RanksConfig
from mpi_train.runtime.flags import at_least, option


@dataclass(frozen=True, kw_only=True)
class PipelineConfig(RanksConfig):
    """Options of the pipeline strategy."""

    stages: int | None = option(
        None,
        "number of pipeline stages; remaining ranks form data-parallel replicas (default: as many stages as "
        "the model and the number of ranks allow)",
    )
    micro_batches: int = option(
        4, "parts of a step's examples that flow through the stages one after another", changes_result=True
    )
    cut: str | None = option(
        None, "last layer of each stage but the last, with commas (default: balanced by time)", "LAYERS"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stages is not None:
            at_least("--stages", self.stages, 1)
        at_least("--micro-batches", self.micro_batches, 1)
