"""What ``jobs/plan.py`` and ``jobs/scaling.py`` take; apart from what they do, as ``--help`` waits for no
TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpi_train.benchmarks.scaling.cost_model import Network
from mpi_train.collectives.registry import COLLECTIVES
from mpi_train.runs.config import StepConfig
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import at_least, option

Machine = Literal["auto", "one", "many"]


def every_step() -> list[str]:
    """Ways that exchange at every step, so that a few steps tell what one takes."""
    return [name for name, way in COLLECTIVES.items() if way.every == 1]


@dataclass(frozen=True, kw_only=True)
class MeasureConfig(StepConfig):
    """What both take: which step, and how often it is timed."""

    repeats: int = option(5, "samples of each measurement, taken in turn")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--repeats", self.repeats, 1)


@dataclass(frozen=True, kw_only=True)
class ScalingConfig(MeasureConfig):
    """Which ways of exchanging are measured on 1, 2, 4, 8, … ranks, up to those that there are."""

    collectives: str = option(
        "plain", "ways to exchange, as jobs/mpi.py --collective has them, with commas", "NAMES"
    )
    out: Path = option(Path("results/scaling"), "folder for scaling.json, scaling.md and scaling.png", "DIR")

    def __post_init__(self) -> None:
        super().__post_init__()
        known = every_step()
        if not self.ways or not set(self.ways) <= set(known):
            raise UsageError(
                f"--collectives: expected some of {', '.join(known)}, which exchange at every step. "
                f"Got: {self.collectives!r}"
            )

    @property
    def ways(self) -> list[str]:
        """Names of ``collectives``."""
        return list(dict.fromkeys(name.strip() for name in self.collectives.split(",") if name.strip()))


@dataclass(frozen=True, kw_only=True)
class PlanConfig(MeasureConfig):
    """What is predicted, and from which measurement."""

    calibration: Path | None = option(
        None, "predict from this earlier calibration.json, and measure nothing", "FILE"
    )
    epochs: int = option(5, "passes over the training set")
    examples: int = option(60_000, "examples of the training set")
    max_ranks: int = option(4096, "the most ranks to predict")
    ranks_per_node: int = option(1, "ranks of a node")
    weak: bool = option(
        False,
        "--batch-size is that of each rank, so that the global batch grows with them (changes the result)",
    )
    every: int | None = option(
        None, "steps between two exchanges, of ways that can be local (default: each way's own)"
    )
    machine: Machine = option(
        "auto", "many: nodes with cores of their own; one: all ranks share this machine's (auto: as measured)"
    )
    gbit: float | None = option(
        None, "predict for a network of so many Gbit/s, in place of the measured one", "RATE"
    )
    latency_us: float | None = option(None, "its latency in microseconds (with --gbit)", "TIME")
    simulate: bool = option(False, "simulate the all-reduces with SimGrid too; minutes")
    out: Path = option(
        Path("results/plan"), "folder for calibration.json, plan.json, plan.md, plan.png", "DIR"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "examples", "max_ranks", "ranks_per_node"):
            at_least("--" + name.replace("_", "-"), getattr(self, name), 1)
        if self.every is not None:
            at_least("--every", self.every, 1)
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
        """The one that is given in place of the measured one."""
        if self.gbit is None or self.latency_us is None:
            return None
        return Network(latency_s=self.latency_us * 1e-6, seconds_per_byte=8e-9 / self.gbit)
