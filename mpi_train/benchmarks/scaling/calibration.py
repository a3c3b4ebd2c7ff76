"""What was measured on one and two ranks, and the file that keeps it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpi_train.benchmarks.scaling.cost_model import Network
from mpi_train.runtime import files
from mpi_train.runtime.errors import UsageError

FILE = "calibration.json"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """What was measured at one number of ranks a core.

    Attributes:
        ranks_per_core: That number; where each node has cores of its own, what there is of it.
        compute_s: Seconds of a step without exchange, by the examples that a rank takes in it; the slower of
            two ranks that compute at once.
        all_reduce_s: Seconds of an all-reduce over two ranks, one after another, by its bytes.
        paused_s: The same, after pauses, by bytes.
        network: Fitted to these.
        fit_error: Largest relative error of the fit to ``all_reduce_s`` from a sixteenth of the model on.
        step_s: Seconds of a step on two ranks, by the way in which they exchange.
    """

    ranks_per_core: float
    compute_s: dict[int, float]
    all_reduce_s: dict[int, float]
    paused_s: dict[int, float]
    network: Network
    fit_error: float
    step_s: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Attributes:
    step: What a step is: model, global batch, optimizer, dtype.
    model_bytes: Of the weights, float32.
    num_buckets: Pieces in which ``buckets`` sends the gradient.
    hosts: Where it was measured.
    threads: Of a rank.
    cores: Of a node.
    one_machine: Whether all ranks share the cores of one machine, under one host name or several.
    alone_s: Seconds of a step of one rank that has its machine to itself, by its examples.
    relative_s: Single steps over their median, of all ranks: how ranks' times scatter.
    roomy: Two ranks that use the cores they have.
    crowded: Two ranks on one core; None where ranks have cores of their own.
    payload: Bytes that the other rank is sent in an exchange, by the way, of two ranks.
    """

    step: dict[str, Any]
    model_bytes: int
    num_buckets: int
    hosts: tuple[str, ...]
    threads: int
    cores: int
    one_machine: bool
    alone_s: dict[int, float]
    relative_s: list[float]
    roomy: Crowd | None = None
    crowded: Crowd | None = None
    payload: dict[str, int] = dataclasses.field(default_factory=dict)

    def write(self, folder: Path) -> None:
        files.write_json(folder / FILE, {"version": VERSION, **dataclasses.asdict(self)})


def read(path: Path) -> Calibration:
    """The calibration in a file.

    Raises:
        UsageError: there is none, or it is no calibration of this version.
    """
    remedy = "mpiexec -n 2 python jobs/plan.py writes one"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"--calibration: expected a file that can be read. Got: {path} ({error.strerror})",
            remedy=remedy,
        ) from error
    except ValueError as error:
        raise UsageError(f"--calibration: expected JSON. Got: {path} ({error})", remedy=remedy) from error
    version = content.pop("version", None) if isinstance(content, dict) else None
    if version != VERSION:
        raise UsageError(
            f"--calibration: expected version {VERSION}. Got: {path} with version {version}",
            remedy=remedy,
        )
    try:
        content["hosts"] = tuple(content["hosts"])
        content["alone_s"] = _by_number(content["alone_s"])
        content |= {name: _crowd(content[name]) for name in ("roomy", "crowded")}
        return Calibration(**content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"--calibration: expected a calibration. Got: {path}, where {error} is missing or wrong",
            remedy=remedy,
        ) from error


def _crowd(content: dict[str, Any] | None) -> Crowd | None:
    if content is None:
        return None
    numbered = {name: _by_number(content[name]) for name in ("compute_s", "all_reduce_s", "paused_s")}
    return Crowd(**{**content, **numbered, "network": Network(**content["network"])})


def _by_number(values: Mapping[str, float]) -> dict[int, float]:
    return {int(number): float(seconds) for number, seconds in values.items()}


def fit_line(values: Mapping[int, float]) -> tuple[float, float]:
    """``a`` and ``b`` of seconds = a + b * number, not below 0, by least squares of the relative errors."""
    numbers, seconds = np.array(list(values), float), np.array(list(values.values()))
    rows = np.stack([1 / seconds, numbers / seconds], 1)
    (a, b), *_ = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)
    if a < 0:
        a, b = 0.0, float((rows[:, 1] @ np.ones(len(rows))) / (rows[:, 1] @ rows[:, 1]))
    elif b < 0:
        a, b = float((rows[:, 0] @ np.ones(len(rows))) / (rows[:, 0] @ rows[:, 0])), 0.0
    return float(a), float(b)


def fit_network(all_reduce_s: Mapping[int, float], paused_s: Mapping[int, float]) -> Network:
    """The network on which two ranks need ``all_reduce_s``, and ``paused_s`` after pauses, by bytes."""
    latency_s, seconds_per_byte = fit_line(all_reduce_s)
    gains_s = [all_reduce_s[size] - seconds for size, seconds in paused_s.items()]
    # What is below a tenth is noise.
    large = [gain for gain, size in zip(gains_s, paused_s, strict=True) if gain > 0.1 * all_reduce_s[size]]
    burst = max(large) / seconds_per_byte if large and seconds_per_byte else 0.0
    # Where noise hides it, no network is infinitely fast: 10 TB/s.
    seconds_per_byte = max(seconds_per_byte, 1e-13)
    return Network(latency_s=latency_s, seconds_per_byte=seconds_per_byte, burst_bytes=burst)


def fit_error(network: Network, all_reduce_s: Mapping[int, float], smallest: int) -> float:
    """The largest relative error of the fit, of ``smallest`` bytes and more."""
    return max(
        abs(network.latency_s + size * network.seconds_per_byte - seconds) / seconds
        for size, seconds in all_reduce_s.items()
        if size >= smallest
    )


def interpolated(values: Mapping[int, float], number: float) -> float:
    """Between the two nearest measurements; beyond the largest along the fitted line."""
    known = sorted(values)
    if number > known[-1]:
        a, b = fit_line(values)
        return values[known[-1]] * (a + b * number) / (a + b * known[-1])
    return float(np.interp(number, known, [values[each] for each in known]))


def batches_of(batch_size: int) -> Sequence[int]:
    """Examples of a rank at which a step is measured: all of the batch, halves of it, and one."""
    return sorted({max(1, batch_size >> power) for power in range(5)} | {1})
