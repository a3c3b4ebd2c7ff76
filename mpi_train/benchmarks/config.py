"""Options of ``jobs/bench_step.py``, ``jobs/scaling.py`` and ``jobs/plan.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpi_train.benchmarks.scaling.cost_model import Network
from mpi_train.collectives.config import Average
from mpi_train.collectives.registry import COLLECTIVES
from mpi_train.runs.config import StepConfig
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import at_least, flag_of, option


def words_of(text: str) -> list[str]:
    """Return the words between commas or blanks, each once."""
    return list(dict.fromkeys(text.replace(",", " ").split()))


def every_step() -> list[str]:
    """Return the collectives that exchange at every step, so that a few steps show their cost."""
    return [name for name, collective in COLLECTIVES.items() if collective.every == 1]


@dataclass(frozen=True, kw_only=True)
class MeasureConfig(StepConfig):
    """Options of all three jobs."""

    repeats: int = option(5, "samples of each measurement, taken in turn")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--repeats", self.repeats, 1)


@dataclass(frozen=True, kw_only=True)
class BenchStepConfig(MeasureConfig):
    """Options of ``jobs/bench_step.py``."""

    average: Average = option("weights", "what the all-reduce of a step averages")
    repeats: int = option(7, "samples of each part, taken in turn")
    out: Path | None = option(None, "folder for bench_step.json, with all samples (default: none)", "DIR")


@dataclass(frozen=True, kw_only=True)
class ScalingConfig(MeasureConfig):
    """Options of ``jobs/scaling.py``."""

    collectives: str = option("plain", "comma list of collectives of jobs/mpi.py", "NAMES")
    out: Path = option(Path("results/scaling"), "folder for scaling.json, scaling.md and scaling.png", "DIR")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.names or not set(self.names) <= set(every_step()):
            raise UsageError(
                f"--collectives: expected some of {', '.join(every_step())}, which exchange at every step. "
                f"Got: {self.collectives!r}"
            )

    @property
    def names(self) -> list[str]:
        return words_of(self.collectives)


@dataclass(frozen=True, kw_only=True)
class PlanConfig(MeasureConfig):
    """Options of ``jobs/plan.py``."""

    calibration: Path | None = option(None, "previous calibration.json to predict from", "FILE")
    epochs: int = option(5, "passes over the training set")
    examples: int = option(60_000, "examples of the training set")
    max_ranks: int = option(4096, "largest number of ranks to predict")
    ranks_per_node: int = option(1, "ranks of a node")
    weak: bool = option(False, "--batch-size is that of each rank, not the global one (changes the result)")
    every: int | None = option(
        None, "steps between two exchanges, if the collective supports that (default: its own)"
    )
    machine: Literal["auto", "one", "many"] = option(
        "auto", "many: nodes with cores of their own; one: all ranks share this machine's (auto: as measured)"
    )
    gbit: float | None = option(None, "bandwidth in Gbit/s, in place of the measured network", "RATE")
    latency_us: float | None = option(None, "latency of that network in microseconds (with --gbit)", "TIME")
    out: Path = option(Path("results/plan"), "folder for calibration.json and plan.{json,md,png}", "DIR")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "examples", "max_ranks", "ranks_per_node", "every"):
            if getattr(self, name) is not None:
                at_least(flag_of(name), getattr(self, name), 1)
        if (self.gbit is None) != (self.latency_us is None):
            raise UsageError(
                "--gbit, --latency-us: expected both or none, as they replace the measured network. "
                f"Got: --gbit {self.gbit}, --latency-us {self.latency_us}",
                remedy="--gbit 100 --latency-us 2, for example",
            )
        for flag, value in (("--gbit", self.gbit), ("--latency-us", self.latency_us)):
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{flag}: expected a number above 0. Got: {value:g}")

    @property
    def network(self) -> Network | None:
        """Network in place of the measured one, or None."""
        if self.gbit is None or self.latency_us is None:
            return None
        return Network(latency_s=self.latency_us * 1e-6, seconds_per_byte=8e-9 / self.gbit)
