"""Fits, predictions and advice, from a calibration that is plain enough to do the sums by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest

from mpi_train.benchmarks.config import PlanConfig
from mpi_train.benchmarks.scaling import calibration as calibrations
from mpi_train.benchmarks.scaling import charts
from mpi_train.benchmarks.scaling.calibration import (
    Calibration,
    batches_of,
    fit_line,
    fit_network,
    interpolated,
)
from mpi_train.benchmarks.scaling.cost_model import Shape
from mpi_train.benchmarks.scaling.predict import Model, advise, trainings
from mpi_train.collectives.registry import COLLECTIVES
from mpi_train.runtime import files
from mpi_train.runtime.errors import UsageError
from tests.benchmarks.scaling.conftest import (
    LATENCY_S,
    MODEL_BYTES,
    SECONDS_PER_BYTE,
    all_reduce_s,
    compute_s,
)


def test_a_fit_finds_the_network_that_made_the_times() -> None:
    times = {size: 5e-5 + 8e-9 * size for size in (4096, 10_000, 1_000_000, 4_000_000)}
    network = fit_network(times, {1_000_000: times[1_000_000] - 2e-3})
    assert network.latency_s == pytest.approx(5e-5)
    assert network.seconds_per_byte == pytest.approx(8e-9)
    assert network.burst_bytes == pytest.approx(250_000)


def test_a_pause_that_saves_little_is_noise() -> None:
    times = {size: 5e-5 + 8e-9 * size for size in (4096, 1_000_000)}
    assert fit_network(times, {1_000_000: 0.95 * times[1_000_000]}).burst_bytes == 0


def test_neither_part_of_a_line_is_below_nothing() -> None:
    assert fit_line({1: 1.0, 2: 3.0, 4: 7.0})[0] == 0
    assert fit_line({1: 3.0, 2: 2.0})[1] == 0


def test_measurements_are_kept_to_and_gone_on_from() -> None:
    times = {batch: compute_s(batch) for batch in (1, 32, 64)}
    assert interpolated(times, 32) == times[32]
    assert interpolated(times, 48) == pytest.approx(compute_s(48))
    assert interpolated(times, 128) == pytest.approx(compute_s(128))


def test_steps_are_measured_at_halves_of_the_batch_and_at_one() -> None:
    assert batches_of(64) == [1, 4, 8, 16, 32, 64]
    assert batches_of(3) == [1, 3]


def test_the_step_that_was_measured_is_predicted(calibration: Calibration) -> None:
    step = Model(calibration).step("plain", Shape(2), 32)
    assert step.total_s == pytest.approx(compute_s(32) + all_reduce_s(MODEL_BYTES))
    assert step.own_s == pytest.approx(0, abs=1e-12)
    assert Model(calibration).step("plain", Shape(1), 64).total_s == pytest.approx(compute_s(64))


def test_four_nodes_take_a_quarter_of_the_examples_and_send_half_as_much_again(
    calibration: Calibration,
) -> None:
    step = Model(calibration).step("plain", Shape(4), 16)
    assert step.compute_s == pytest.approx(compute_s(16))
    assert step.moving_s == pytest.approx(4 * LATENCY_S + 1.5 * MODEL_BYTES * SECONDS_PER_BYTE)
    assert step.sent_bytes == 1.5 * MODEL_BYTES


def test_what_a_way_adds_of_its_own_is_kept(calibration: Calibration) -> None:
    uncontended = calibration.uncontended
    assert uncontended is not None
    slower = {**uncontended.step_s, "powersgd": uncontended.step_s["plain"] + 1e-3}
    calibration = msgspec.structs.replace(
        calibration, uncontended=msgspec.structs.replace(uncontended, step_s=slower)
    )
    model = Model(calibration)
    # That it makes two all-reduces is known, and is not its own.
    assert model.step("powersgd", Shape(2), 32).own_s == pytest.approx(1e-3 - LATENCY_S)
    assert model.step("powersgd", Shape(16), 4).own_s == pytest.approx(1e-3 - LATENCY_S)


def test_ranks_that_scatter_wait_for_the_slowest(calibration: Calibration) -> None:
    calibration = msgspec.structs.replace(calibration, relative_s=[1.0, 1.0, 1.0, 1.4])
    waits = [Model(calibration).step("plain", Shape(n), 32).waiting_s for n in (2, 8, 64)]
    assert 0 < waits[0] < waits[1] < waits[2]
    assert waits[2] == pytest.approx(compute_s(32) * (1.4 / 1.1 - 1))


def test_what_is_hidden_takes_no_time(calibration: Calibration) -> None:
    model = Model(calibration, PlanConfig(latency_us=1, gbit=8))
    step = model.step("delayed", Shape(4), 16)
    assert step.moving_s == 0
    assert step.hidden_s > 0


def test_every_so_many_steps_is_so_much_less(calibration: Calibration) -> None:
    plain = Model(calibration).step("plain", Shape(4), 16)
    seldom = Model(calibration, PlanConfig(every=8)).step("plain", Shape(4), 16)
    assert seldom.moving_s == pytest.approx(plain.moving_s / 8)
    exchange_s, seldom_s = (step.total_s - step.compute_s - step.waiting_s for step in (plain, seldom))
    assert seldom_s == pytest.approx(exchange_s / 8)
    assert Model(calibration, PlanConfig(every=8)).changes_result("plain")
    assert not Model(calibration).changes_result("plain")


def test_ranks_on_shared_cores_get_no_faster(shared: Calibration) -> None:
    model = Model(shared)
    assert model.step("plain", Shape(4), 16).compute_s == pytest.approx(2 * compute_s(16))
    assert model.step("plain", Shape(8), 8).compute_s == pytest.approx(4 * compute_s(8))
    assert model.step("plain", Shape(3), 21).compute_s == pytest.approx(1.5 * compute_s(21))
    assert Model(shared, PlanConfig(machine="many")).step("plain", Shape(8), 8).compute_s == pytest.approx(
        compute_s(8)
    )
    # The wire is no slower for it.
    assert model.step("plain", Shape(8), 8).moving_s == pytest.approx(6 * 4 * LATENCY_S + 1.75e-2, rel=0.02)


def test_every_collective_is_predicted_at_every_size(calibration: Calibration) -> None:
    found = trainings(Model(calibration, PlanConfig(epochs=2, examples=640)))
    assert list(found) == list(COLLECTIVES)
    for rows in found.values():
        assert [row.shape.ranks for row in rows] == [1, 2, 4, 8, 16, 32, 64], "a batch of 64 goes no further"
        assert rows[0].train_s == pytest.approx(2 * 10 * compute_s(64))
        assert rows[0].efficiency == pytest.approx(1)
        assert all(row.node_hours == pytest.approx(row.train_s * row.shape.nodes / 3600) for row in rows)
        assert all(row.efficiency <= 1 for row in rows)


def test_weak_scaling_goes_on_and_takes_fewer_steps(calibration: Calibration) -> None:
    config = PlanConfig(epochs=1, examples=64 * 4096, ranks_per_node=2, weak=True)
    found = trainings(Model(calibration, config))
    last = found["plain"][-1]
    assert (last.shape.ranks, last.shape.nodes, last.batch_size) == (4096, 2048, 64 * 4096)
    assert last.train_s == pytest.approx(last.step.total_s)


def test_advice_is_the_best_of_what_is_predicted(calibration: Calibration) -> None:
    fast = PlanConfig(latency_us=1, gbit=800, epochs=1, examples=64_000, max_ranks=64)
    found = trainings(Model(calibration, fast))
    advice = advise(found, ["plain"])
    rows = found["plain"]
    assert advice.fastest is min(rows, key=lambda row: row.train_s)
    assert advice.cheapest is rows[0]
    assert advice.efficient.efficiency >= 0.8
    after = rows[rows.index(advice.efficient) + 1]
    assert after.efficiency < 0.8
    assert advice.falls_at == after.shape.nodes


def test_a_calibration_is_read_as_it_was_written(shared: Calibration, tmp_path: Path) -> None:
    files.write_json(tmp_path / "calibration.json", shared.as_dict())
    assert calibrations.read(tmp_path / "calibration.json") == shared


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, r"expected a readable file with a calibration of version 1\. Got: .*No such file"),
        ("{", "truncated"),
        ("[]", "got `array`"),
        ('{"version": 0}', "Invalid value 0"),
        ('{"version": 1}', "missing required field"),
    ],
)
def test_what_is_no_calibration_is_refused(content: str | None, text: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=text):
        calibrations.read(path)


def test_a_calibration_with_other_fields_is_refused(shared: Calibration, tmp_path: Path) -> None:
    files.write_json(tmp_path / "calibration.json", shared.as_dict())
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "red"}))
    with pytest.raises(UsageError, match="colour"):
        calibrations.read(path)


def test_a_collective_without_a_known_cost_is_an_error(
    calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = dataclasses.replace(COLLECTIVES["plain"], cost="butterfly")
    monkeypatch.setitem(COLLECTIVES, "new", entry)
    with pytest.raises(UsageError, match=r"collective new: .* Got: butterfly"):
        Model(calibration).step("new", Shape(2), 32)


def test_every_collective_is_in_the_chart_in_a_colour_of_its_own(
    calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        monkeypatch.setitem(COLLECTIVES, f"extra{number}", COLLECTIVES["plain"])
    model = Model(calibration, PlanConfig(epochs=1, examples=640, max_ranks=4))
    found = trainings(model)
    time_axes, hours_axes = charts.plan(found, model, "claim").axes
    for axes in (time_axes, hours_axes):
        assert [line.get_label() for line in axes.get_lines()] == list(COLLECTIVES)
        assert len({line.get_color() for line in axes.get_lines()}) == len(COLLECTIVES)
