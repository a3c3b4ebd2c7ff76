"""SimGrid, which knows nothing of the formulas, against the formulas."""

from __future__ import annotations

import pytest

from mpi_train.benchmarks.scaling import simgrid
from mpi_train.benchmarks.scaling.cost_model import Network
from mpi_train.runtime.errors import PlatformError

pytestmark = pytest.mark.mpi_skip


def has_simgrid() -> bool:
    try:
        return bool(simgrid.interpreter())
    except PlatformError:
        return False


needs_simgrid = pytest.mark.skipif(not has_simgrid(), reason=f"needs SimGrid: {simgrid.REMEDY}")


@needs_simgrid
@pytest.mark.parametrize("num_bytes", [8_192, 1_048_576])
def test_formulas_agree_with_the_simulator(num_bytes: int) -> None:
    network = Network(latency_s=2e-5, seconds_per_byte=8e-10)
    found = list(simgrid.simulate(network, num_bytes, sizes=(2, 16)))
    assert [(each.algorithm, each.ranks) for each in found] == [
        (name, ranks) for ranks in (2, 16) for name in ("ring", "recursive doubling", "halving and doubling")
    ]
    assert all(abs(each.difference) < 0.01 for each in found)
    # The messages of all ranks, in all rounds.
    assert [each.messages for each in found if each.ranks == 16] == [16 * 30, 16 * 4, 16 * 8]


@needs_simgrid
def test_of_a_long_ring_some_rounds_are_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simgrid, "_MOST_MESSAGES", 16)
    network = Network(latency_s=2e-5, seconds_per_byte=8e-10)
    ring, *_ = simgrid.simulate(network, 1_048_576, sizes=(16,))
    assert ring.messages == 16 * 4
    assert ring.part == 4 / 30
    assert abs(ring.difference) < 0.01


def test_without_simgrid_one_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simgrid, "_PYTHONS", ("/bin/false", "/no/python"))
    simgrid.interpreter.cache_clear()
    with pytest.raises(PlatformError, match="expected a Python with SimGrid") as raised:
        list(simgrid.simulate(Network(latency_s=1e-6, seconds_per_byte=1e-9), 1024))
    assert "apt-get install" in str(raised.value)
    simgrid.interpreter.cache_clear()
