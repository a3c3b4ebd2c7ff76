"""Measurements on two ranks that predictions are made from, and the file that keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mpi_train.benchmarks.scaling.cost_model import Network
from mpi_train.runtime.errors import UsageError

FILE = "calibration.json"
VERSION = 1


class Contention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measurements of two ranks at one number of ranks per core.

    Seconds of a step without exchange by examples a rank, of an all-reduce without and after pauses by bytes,
    and of a step by collective; the network that fits the all-reduces, and the largest error of the fit.
    """

    ranks_per_core: float
    compute_s: dict[int, float]
    all_reduce_s: dict[int, float] = {}
    paused_s: dict[int, float] = {}
    network: Network
    fit_error: float = 0.0
    step_s: dict[str, float] = {}


class Calibration(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="version",
    tag=VERSION,
    rename={"uncontended": "roomy", "contended": "crowded"},  # names in files of version 1
):
    """Measurements on two ranks, and on one of them alone.

    Attributes:
        step: Model, global batch, optimizer and dtype of a step.
        num_buckets: Number of messages in which ``buckets`` sends the gradient.
        cores: Cores of a node.
        one_machine: True if all ranks share the cores of one machine, under one host name or several.
        alone_s: Seconds of a step of one rank that has the machine to itself, by examples.
        relative_s: Distribution of single steps on all ranks, relative to their median.
        uncontended: Two ranks on the cores that they have.
        contended: Two ranks on one core; None if ranks have cores of their own.
        payload: Bytes that a rank sends in an exchange of two ranks, by collective.
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
    uncontended: Contention
    contended: Contention | None = None
    payload: dict[str, int] = {}

    def as_dict(self) -> dict[str, Any]:
        """Return the content of the file."""
        content: dict[str, Any] = msgspec.to_builtins(self, str_keys=True)
        return content


def read(path: Path) -> Calibration:
    """Read a calibration; raises ``UsageError`` for a missing file or another version."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Calibration)
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(
            f"--calibration: expected a readable file with a calibration of version {VERSION}. Got: {path} "
            f"({error.strerror if isinstance(error, OSError) else error})",
            remedy="mpiexec -n 2 python jobs/plan.py writes one",
        ) from error


def fit_line(values: Mapping[int, float]) -> tuple[float, float]:
    """Fit seconds = a + b * number, with a and b not below 0, by least squares of the relative errors."""
    numbers, seconds = np.array(list(values), float), np.array(list(values.values()))
    rows = np.stack([1 / seconds, numbers / seconds], 1)
    (a, b), *_ = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)
    # Where one coefficient is below 0, the fit has the other one only.
    only_a, only_b = rows.sum(0) / (rows**2).sum(0)
    a, b = (0.0, only_b) if a < 0 else (only_a, 0.0) if b < 0 else (a, b)
    return float(a), float(b)


def fit_network(all_reduce_s: Mapping[int, float], paused_s: Mapping[int, float]) -> Network:
    """Fit the network on which two ranks need ``all_reduce_s``, and ``paused_s`` after pauses, by bytes."""
    latency_s, seconds_per_byte = fit_line(all_reduce_s)
    gains_s = {size: all_reduce_s[size] - seconds for size, seconds in paused_s.items()}
    # A gain below a tenth is noise.
    large = [gain_s for size, gain_s in gains_s.items() if gain_s > 0.1 * all_reduce_s[size]]
    burst_bytes = max(large) / seconds_per_byte if large and seconds_per_byte else 0.0
    # Noise can hide the slope, but no network is infinitely fast: at most 10 TB/s.
    return Network(latency_s, max(seconds_per_byte, 1e-13), burst_bytes)


def fit_error(network: Network, all_reduce_s: Mapping[int, float], smallest: int) -> float:
    """Return the largest relative error of the fit, for ``smallest`` bytes and more."""
    return max(
        abs(network.latency_s + size * network.seconds_per_byte - seconds) / seconds
        for size, seconds in all_reduce_s.items()
        if size >= smallest
    )


def interpolated(values: Mapping[int, float], number: float) -> float:
    """Interpolate between the nearest measurements; extrapolate along the fitted line."""
    known = sorted(values)
    if number > known[-1]:
        a, b = fit_line(values)
        return values[known[-1]] * (a + b * number) / (a + b * known[-1])
    return float(np.interp(number, known, [values[each] for each in known]))


def batches_of(batch_size: int) -> Sequence[int]:
    """Return the numbers of examples a rank at which steps are measured: the batch, its halves, and one."""
    return sorted({max(1, batch_size >> power) for power in range(5)} | {1})
