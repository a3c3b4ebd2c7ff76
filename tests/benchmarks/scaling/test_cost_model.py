"""The formulas against what is counted by hand, and against what no exchange can be faster than."""

from __future__ import annotations

import itertools
import statistics

import pytest

from mpi_train.benchmarks.scaling import cost_model
from mpi_train.benchmarks.scaling.cost_model import ALL_REDUCES, Network, Shape, Transfer

NETWORK = Network(latency_s=1e-5, seconds_per_byte=1e-9)


@pytest.mark.parametrize(
    ("algorithm", "rounds", "num_bytes"),
    [
        # 8 ranks, 800 bytes: a ring passes 14 parts of 100; doubling all of it 3 times; halving sends
        # 400, 200 and 100, and gathers as much.
        ("ring", 14, 1400),
        ("recursive doubling", 3, 2400),
        ("halving and doubling", 6, 1400),
    ],
)
def test_all_reduces_of_eight_ranks(algorithm: str, rounds: int, num_bytes: int) -> None:
    assert ALL_REDUCES[algorithm](800, Shape(8)) == Transfer(rounds, num_bytes)


def test_ranks_beyond_a_power_of_two_join_and_leave() -> None:
    # Of 6 ranks 2 hand their vector over before and take the sum after: as 4, and 2 rounds of all of it.
    assert cost_model.recursive_doubling(800, Shape(6)) == Transfer(2 + 2, (2 + 2) * 800)
    assert cost_model.halving_doubling(800, Shape(6)) == Transfer(4 + 2, 1200 + 2 * 800)


def test_between_two_ranks_all_send_what_there_is() -> None:
    assert [each(800, Shape(2)).num_bytes for each in ALL_REDUCES.values()] == [800, 800, 800]
    assert cost_model.hierarchical(800, Shape(2)) == Transfer(2, 800)


def test_one_rank_sends_nothing() -> None:
    patterns = [
        *ALL_REDUCES.values(),
        cost_model.hierarchical,
        cost_model.all_gather,
        cost_model.all_to_all,
        cost_model.neighbour,
    ]
    assert {each(800, Shape(1)) for each in patterns} == {Transfer(0, 0)}


def test_other_patterns_of_four_ranks() -> None:
    assert cost_model.all_gather(100, Shape(4)) == Transfer(2, 300)
    assert cost_model.all_to_all(400, Shape(4)) == Transfer(6, 600)
    assert cost_model.neighbour(400, Shape(4)) == Transfer(1, 400)


def test_a_node_sends_the_vector_once_however_many_ranks_it_has() -> None:
    assert cost_model.hierarchical(800, Shape(2, 2)).num_bytes == 800
    assert cost_model.hierarchical(800, Shape(2, 8)).num_bytes == 800
    # Recursive doubling sends it once a rank.
    assert cost_model.recursive_doubling(800, Shape(2, 8)).num_bytes == 8 * 800


@pytest.mark.parametrize("shape", [Shape(2), Shape(7), Shape(64), Shape(4096)])
def test_no_all_reduce_sends_less_than_it_must(shape: Shape) -> None:
    least = 2 * 800 * (shape.ranks - 1) / shape.ranks
    assert all(each(800, shape).num_bytes >= least - 1e-9 for each in ALL_REDUCES.values())
    assert cost_model.ring(800, shape).num_bytes == pytest.approx(least)


def test_doubling_is_best_for_short_vectors_and_halving_for_long_ones() -> None:
    def fastest(num_bytes: int) -> str:
        return min(
            ALL_REDUCES, key=lambda name: NETWORK.after_pause(ALL_REDUCES[name](num_bytes, Shape(64)), 0)
        )

    assert fastest(100) == "recursive doubling"
    assert fastest(10_000_000) == "halving and doubling"


def test_a_message_takes_its_latency_and_its_bytes() -> None:
    assert NETWORK.after_pause(Transfer(3, 1000), 0) == pytest.approx(3e-5 + 1e-6)


def test_a_burst_saves_what_it_holds_and_no_more_than_the_pause_fills() -> None:
    network = Network(latency_s=0, seconds_per_byte=1e-6, burst_bytes=1000)
    assert network.after_pause(Transfer(1, 5000), 1) == pytest.approx(4e-3)
    assert network.after_pause(Transfer(1, 5000), 2e-4) == pytest.approx(4.8e-3)
    assert network.after_pause(Transfer(1, 500), 1) == 0


def test_the_expected_maximum_is_that_of_all_draws() -> None:
    samples = [1.0, 2.0, 4.0]
    draws = [max(draw) for draw in itertools.product(samples, repeat=3)]
    assert cost_model.expected_maximum(samples, 3) == pytest.approx(statistics.mean(draws))
    assert cost_model.expected_maximum(samples, 1) == pytest.approx(statistics.mean(samples))
    assert cost_model.expected_maximum(samples, 10_000) == pytest.approx(4)
