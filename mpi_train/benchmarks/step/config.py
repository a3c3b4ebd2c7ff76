"""Options of ``jobs/bench_step.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpi_train.collectives.config import Average
from mpi_train.runs.config import StepConfig
from mpi_train.runtime.flags import at_least, option


@dataclass(frozen=True, kw_only=True)
class BenchStepConfig(StepConfig):
    """Options of ``jobs/bench_step.py``."""

    average: Average = option("weights", "what the all-reduce of a step averages")
    repeats: int = option(7, "samples of each part, taken in turn")
    out: Path | None = option(None, "folder for bench_step.json, with all samples (default: none)", "DIR")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--repeats", self.repeats, 1)
