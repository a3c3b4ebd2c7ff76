"""A calibration whose every figure is plain, so that predictions can be checked by hand."""

from __future__ import annotations

import msgspec
import pytest

from mpi_train.benchmarks.scaling.calibration import Calibration, Contention
from mpi_train.benchmarks.scaling.cost_model import Network

LATENCY_S, SECONDS_PER_BYTE = 1e-5, 1e-8
MODEL_BYTES = 1_000_000


def compute_s(batch: int) -> float:
    return 1e-3 + 1e-4 * batch


def all_reduce_s(num_bytes: int) -> float:
    return LATENCY_S + SECONDS_PER_BYTE * num_bytes


@pytest.fixture
def calibration() -> Calibration:
    """Two nodes with cores of their own; no rank is ever late, and exchanging costs what moves."""
    batches = (1, 4, 8, 16, 32, 64)
    computing = {batch: compute_s(batch) for batch in batches}
    sizes = (4096, 62_500, 250_000, 1_000_000, 2_000_000)
    times = {size: all_reduce_s(size) for size in sizes}
    step_s = compute_s(32) + all_reduce_s(MODEL_BYTES)
    return Calibration(
        step={"model": "cnn", "batch_size": 64, "optimizer": "adam", "dtype": "float32"},
        model_bytes=MODEL_BYTES,
        num_buckets=2,
        hosts=("a", "b"),
        threads=1,
        cores=2,
        one_machine=False,
        alone_s=computing,
        relative_s=[1.0],
        uncontended=Contention(
            ranks_per_core=1,
            compute_s=computing,
            all_reduce_s=times,
            paused_s={1_000_000: all_reduce_s(1_000_000)},
            network=Network(latency_s=LATENCY_S, seconds_per_byte=SECONDS_PER_BYTE),
            fit_error=0.0,
            step_s={"plain": step_s},
        ),
    )


@pytest.fixture
def shared(calibration: Calibration) -> Calibration:
    """The same ranks on two cores of one machine, where two on one core take twice as long."""
    uncontended = calibration.uncontended
    assert uncontended is not None
    contended = msgspec.structs.replace(
        uncontended,
        ranks_per_core=2,
        compute_s={batch: 2 * seconds for batch, seconds in uncontended.compute_s.items()},
        step_s={"plain": 2 * compute_s(32) + all_reduce_s(MODEL_BYTES)},
    )
    return msgspec.structs.replace(calibration, one_machine=True, contended=contended)
