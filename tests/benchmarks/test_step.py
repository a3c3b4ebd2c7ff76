"""What ``bench_step`` makes of its samples, how it takes them, and how it counts operations."""

from __future__ import annotations

import time

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from mpi_train.benchmarks import timing
from mpi_train.benchmarks.step import measure as figures
from mpi_train.benchmarks.step.measure import bandwidths
from mpi_train.benchmarks.step.workloads import Loop, count_flop, gradient, product
from mpi_train.benchmarks.timing import time_in_turn
from mpi_train.models import zoo
from mpi_train.runtime.world import World

BATCH = 8


def samples(*, world_size: int) -> figures.Samples:
    return figures.Samples(
        world_size=world_size,
        parts_s={
            figures.GRADIENT: [1.0e-3, 2.0e-3, 1.0e-3],
            figures.OPTIMIZER: [0.1e-3, 0.1e-3, 0.1e-3],
            figures.STEP: [1.1e-3, 2.4e-3, 1.3e-3],
            figures.AVERAGED: [1.4e-3, 3.0e-3, 1.4e-3],
            figures.ALL_REDUCE: [0.2e-3, 0.3e-3, 0.1e-3],
            figures.ALONE: [1.05e-3, 2.4e-3, 1.12e-3],
            figures.PRODUCT: [0.02, 0.04, 0.02],
        },
        gradient_flop=50_000_000,
        product_flop=2_000_000_000,
        all_reduce_s={4096: [8e-6, 10e-6, 9e-6]} if world_size > 1 else {},
    )


def test_ratios_are_taken_within_a_sample() -> None:
    step, loop, scaling, at_most, averaging = samples(world_size=2).ratios().values()
    assert step == pytest.approx([1.1, 1.2, 1.3])
    assert loop == pytest.approx([1.1 / 1.1, 2.4 / 2.1, 1.3 / 1.1])
    assert scaling == pytest.approx([1.5, 1.6, 1.6])
    assert at_most == pytest.approx([2.1 / 1.1, 2, 2.24 / 1.3])
    assert averaging == pytest.approx([1.5, 2, 1])


def test_one_rank_has_nothing_to_say_of_others() -> None:
    assert list(samples(world_size=1).ratios()) == [
        "step / gradient",
        "step / (gradient + optimizer)",
    ]
    assert len(figures.tables(samples(world_size=1))) == 3


def test_rates_and_their_share_of_the_matrix_product() -> None:
    assert {name: rate.tolist() for name, (_, rate) in samples(world_size=1).rates().items()} == {
        figures.PRODUCT: pytest.approx([100e9, 50e9, 100e9]),
        figures.GRADIENT: pytest.approx([50e9, 25e9, 50e9]),
        figures.STEP: pytest.approx([45.4545e9, 20.8333e9, 38.4615e9], rel=1e-4),
    }
    assert samples(world_size=1).shares() == {
        figures.PRODUCT: [1, 1, 1],
        figures.GRADIENT: pytest.approx([0.5, 0.5, 0.5]),
        figures.STEP: pytest.approx([0.454545, 0.416667, 0.384615], rel=1e-4),
    }


def test_bandwidths_are_those_of_nccl_tests() -> None:
    assert bandwidths(10**9, 0.5, num_ranks=2) == (2, 2)
    assert bandwidths(10**9, 0.5, num_ranks=4) == (2, 3)


def test_tables_show_medians_in_80_columns() -> None:
    console = Console(width=80, highlight=False, markup=False)
    with console.capture() as capture:
        for table in figures.tables(samples(world_size=2)):
            console.print(table.terminal())
    rows = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert "gradient 1,000.0 1,000.0-2,000.0" in rows
    assert "weak scaling: 2 x alone / averaged 1.60x 1.50x-1.60x" in rows
    assert "averaging: (averaged - step) / all-reduce 1.50x 1.00x-2.00x" in rows
    assert "step 50.0 38.5 20.8-45.5 42% 38%-45%" in rows
    assert "4,096 9.0 8.0-10.0 0.46 0.46" in rows


def test_samples_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SAMPLE_S", 0)
    calls: list[str] = []
    works = {name: lambda count, name=name: calls.append(name) for name in "ABC"}
    taken = time_in_turn(works, World(), repeats=2, alone={"C"})
    assert calls[-6:] == list("ABCABC")
    assert {name: len(values) for name, values in taken.items()} == {"A": 2, "B": 2, "C": 2}


@pytest.mark.mpi(min_size=2)
def test_ranks_do_equally_much_and_one_works_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SAMPLE_S", 2e-3)
    counts: list[int] = []
    alone: list[int] = []

    def sleep(count: int) -> None:
        counts.append(count)
        # Ranks of different speed would choose different counts if each looked at itself alone.
        time.sleep(count * 1e-4 * (world.rank + 1))

    taken = time_in_turn({"all": sleep}, world, repeats=3)
    taken.update(time_in_turn({"one": alone.append}, world, repeats=3, share=0, alone={"one"}))
    assert len(set(world.gather_all(tuple(counts)))) == 1
    assert world.gather_all(bool(alone)) == [True] + [False] * (world.size - 1)
    assert len({str(values) for values in world.gather_all(taken)}) == 1


def gradient_of(name: str, dtype: str = "float32") -> Loop:
    model = zoo.build(name, (28, 28, 1), 10, seed=1, dtype=dtype)
    images = np.random.default_rng(1).random((2, BATCH, 28, 28, 1), np.float32)
    return gradient(model, images, np.arange(BATCH, dtype=np.int32))


# Multiply-adds of one image. Each layer multiplies once forward, once for the gradient of its weights and,
# unless its input is the image, once for that of its input.
MLP = 2 * 784 * 128 + 3 * 128 * 10
CNN = 2 * 26 * 26 * 32 * 9 + 3 * (11 * 11 * 64 * 9 * 32 + 1600 * 128 + 128 * 10)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "multiply_adds"), [("mlp", MLP), ("cnn", CNN)])
def test_operations_are_those_counted_by_hand(name: str, multiply_adds: int, dtype: str) -> None:
    assert gradient_of(name, dtype).flop() == 2 * BATCH * multiply_adds


def test_products_of_transposed_and_of_many_matrices() -> None:
    def flop(function: object) -> int:
        return count_flop(tf.function(function).get_concrete_function().outputs)

    a, b = tf.ones([5, 3]), tf.ones([5, 7])
    assert flop(lambda: tf.matmul(a, b, transpose_a=True)) == 2 * 3 * 5 * 7
    many = tf.ones([4, 2, 5, 3])
    assert flop(lambda: tf.matmul(many, many, transpose_b=True)) == 2 * 8 * 5 * 3 * 5


def test_what_is_used_twice_counts_once() -> None:
    def square() -> tf.Tensor:
        product = tf.ones([2, 2]) @ tf.ones([2, 2])
        return product + product

    assert count_flop(tf.function(square).get_concrete_function().outputs) == 2 * 2 * 2 * 2


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_the_gradient_loop_ends_with_the_gradient_of_its_last_batch(name: str) -> None:
    loop = gradient_of(name)
    looped = loop.run(tf.constant(2))
    expected = tf.function(loop.body)(tf.constant(1))
    # BatchNorm's moving statistics have moved in between, but training does not read them.
    for one, other in zip(looped, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_product_loop_multiplies_what_it_says(dtype: str) -> None:
    loop = product(dtype)
    expected = tf.cast(loop.body(0)[0], tf.float32)[0, 0]
    assert float(loop.run(tf.constant(3))[0]) == pytest.approx(float(expected), rel=0.02)
    assert loop.flop() == 2 * 1024**3
