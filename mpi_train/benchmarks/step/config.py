"""What ``jobs/bench_step.py`` takes; apart from what it does, so that ``--help`` waits for no TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpi_train.collectives.config import Average
from mpi_train.runs.config import StepConfig
from mpi_train.runtime.flags import at_least, option


@dataclass(frozen=True, kw_only=True)
class BenchStepConfig(StepConfig):
    """Which step to time, and how often."""

    average: Average = option("weights", "what the all-reduce of a step averages")
    repeats: int = option(7, "samples of each part, taken in turn")
    out: Path | None = option(None, "folder for bench_step.json, with all samples (default: none)", "DIR")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--repeats", self.repeats, 1)
