"""Steps and orders: exact global batches, every example once, whatever the number of ranks."""

import numpy as np
import pytest

from mpi_train.data.shards import balanced_range
from mpi_train.training.steps import Steps, epoch_order, plan_steps


def visited(steps: Steps) -> list[int]:
    """Positions that count, in the order in which the steps take them."""
    every = zip(steps.begins.ravel(), steps.sizes.ravel(), steps.scales.ravel(), strict=True)
    return [int(begin) + i for begin, size, scale in every if scale for i in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("num_examples", "batch_size"), [(509, 64), (512, 64), (60, 7), (64, 64), (9, 100)])
def test_steps_of_all_ranks_make_exact_global_batches(num_examples: int, batch_size: int, size: int) -> None:
    plans = [plan_steps(num_examples, batch_size, rank=rank, size=size) for rank in range(size)]
    counts = np.array([plan.sizes.sum(axis=(1, 2)) * (plan.scales > 0).all(axis=1) for plan in plans])
    expected = [min(batch_size, num_examples - start) for start in range(0, num_examples, batch_size)]
    assert counts.sum(axis=0).tolist() == expected
    assert counts.min() >= 0
    assert (counts.max(axis=0) - counts.min(axis=0)).max() <= 1
    for rank, plan in enumerate(plans):
        start, stop = balanced_range(num_examples, size, rank)
        assert plan.num_examples == stop - start
        assert visited(plan) == list(range(stop - start))


@pytest.mark.parametrize("size", [1, 3])
def test_mean_over_ranks_of_scaled_sums_is_the_mean_over_the_batch(size: int) -> None:
    values = np.random.default_rng(0).random(50)
    plans = [plan_steps(50, 16, rank=rank, size=size) for rank in range(size)]
    for step in range(4):
        parts = []
        for rank, plan in enumerate(plans):
            first, _ = balanced_range(50, size, rank)
            parts.append(values[[first + position for position in visited(plan[step : step + 1])]])
        mean = sum(p.sum() * plans[0].scales[step] for p in parts) / size
        assert mean == pytest.approx(np.concatenate(parts).mean())


def test_order_is_a_permutation_that_depends_on_seed_epoch_and_rank() -> None:
    order = epoch_order(1, 1, 0, 100)
    assert sorted(order) == list(range(100))
    assert order.dtype == np.int32
    assert (order == epoch_order(1, 1, 0, 100)).all()
    for other in (epoch_order(2, 1, 0, 100), epoch_order(1, 2, 0, 100), epoch_order(1, 1, 1, 100)):
        assert (order != other).any()


@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_parts_of_a_step_are_even_and_none_is_empty(num_parts: int) -> None:
    whole, split = plan_steps(509, 64), plan_steps(509, 64, num_parts=num_parts)
    assert visited(split) == visited(whole)
    assert split.sizes.min() >= 1
    assert (split.sizes.max(axis=1) - split.sizes.min(axis=1)).max() <= 1
    assert split.begins.max() < 509


def test_steps_are_regular_where_only_the_last_one_differs() -> None:
    steps = plan_steps(509, 64, num_parts=2)
    assert steps.regular_parts == ((32, 1 / 64), (32, 1 / 64))
    order = epoch_order(1, 1, 0, 509)
    assert (steps.regular_rows(order) == order[: 7 * 64].reshape(7, 64)).all()
    assert plan_steps(509, 64, rank=0, size=3).regular_parts is None
    # One example a step, which counts in some of them only.
    assert plan_steps(509, 4, rank=0, size=8).regular_parts is None
