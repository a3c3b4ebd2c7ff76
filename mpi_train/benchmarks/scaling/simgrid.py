"""Has SimGrid simulate all-reduces of many ranks, to hold against the formulas."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpi_train.benchmarks.scaling.cost_model import ALL_REDUCES, Network, Shape
from mpi_train.runtime.errors import PlatformError

SIZES = (64, 512, 4096)
REMEDY = (
    "apt-get install --no-install-recommends python3-simgrid (or pip install simgrid, with a C++ compiler)"
)
_PYTHONS = (sys.executable, "/usr/bin/python3")
_SCRIPT = Path(__file__).with_name("simgrid_all_reduce.py")
_TIMEOUT_S = 1200
_MOST_MESSAGES = 100_000
"""Of a ring, whose rounds are all alike; beyond, fewer rounds are simulated, and their time scaled."""


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """An all-reduce.

    Attributes:
        algorithm: Its name.
        ranks: How many, each on a node of its own.
        formula_s: What the formula says.
        simulated_s: What SimGrid says.
        messages: That were simulated.
        part: Of the rounds of a ring, those that were simulated.
        version: SimGrid's.
    """

    algorithm: str
    ranks: int
    formula_s: float
    simulated_s: float
    messages: int
    part: float
    version: str

    @property
    def difference(self) -> float:
        return self.simulated_s / self.formula_s - 1


@functools.cache
def interpreter() -> str:
    """A Python that can import SimGrid: this one, or the system's.

    Raises:
        PlatformError: neither can.
    """
    for python in _PYTHONS:
        try:
            found = subprocess.run([python, "-c", "import simgrid"], capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            continue
        if found.returncode == 0:
            return python
    raise PlatformError(
        "--simulate: expected a Python with SimGrid. Got: none, neither this one nor /usr/bin/python3",
        remedy=REMEDY,
    )


def simulate(
    network: Network,
    num_bytes: int,
    sizes: Sequence[int] = SIZES,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Simulated]:
    """All-reduces of ``num_bytes`` by each algorithm, over ``sizes``, powers of two.

    Raises:
        PlatformError: no Python here has SimGrid, or it fails.
    """
    python = interpreter()
    for ranks in sizes:
        for algorithm, moved in ALL_REDUCES.items():
            say(f"simulating {algorithm} on {ranks:,} ranks")
            all_rounds = int(moved(num_bytes, Shape(ranks)).rounds)
            rounds = min(all_rounds, max(4, _MOST_MESSAGES // ranks)) if algorithm == "ring" else all_rounds
            case = {
                "latency_s": network.latency_s,
                "bytes_per_s": 1 / network.seconds_per_byte,
                "num_bytes": num_bytes,
                "algorithm": algorithm,
                "ranks": ranks,
                "rounds": rounds,
            }
            result = _run(python, case)
            yield Simulated(
                algorithm=algorithm,
                ranks=ranks,
                formula_s=network.after_pause(moved(num_bytes, Shape(ranks)), 0),
                simulated_s=result["seconds"] * all_rounds / rounds,
                messages=int(result["messages"]),
                part=rounds / all_rounds,
                version=str(result["version"]),
            )


def _run(python: str, case: dict[str, object]) -> dict[str, float]:
    try:
        done = subprocess.run(
            [python, str(_SCRIPT)], input=json.dumps(case), capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise PlatformError(
            f"--simulate: SimGrid did not end in {_TIMEOUT_S} s", remedy="without --simulate"
        ) from error
    if done.returncode != 0:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise PlatformError(f"--simulate: SimGrid failed with code {done.returncode}: {said}", remedy=REMEDY)
    return json.loads(done.stdout.splitlines()[-1])
