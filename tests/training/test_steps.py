"""Steps and orders: exact global batches, every example once, whatever the number of ranks."""

import numpy as np
import pytest

from mpi_train.data.shards import balanced_range
from mpi_train.training.steps import Steps, epoch_batches, plan_steps, steps_of_epoch

KEY = (3, 2)


def visited(steps: Steps, first: int = 0, stop: int | None = None) -> list[int]:
    """Positions that count, in the order in which the steps from ``first`` to ``stop`` take them."""
    part = slice(first, stop)
    columns = (array[part].ravel() for array in (steps.begins, steps.sizes, steps.shares))
    return [int(begin) + i for begin, size, share in zip(*columns, strict=True) if share for i in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("num_examples", "batch_size"), [(509, 64), (512, 64), (60, 7), (64, 64), (9, 100)])
def test_steps_of_all_ranks_make_exact_global_batches(num_examples: int, batch_size: int, size: int) -> None:
    plans = [plan_steps(KEY, num_examples, batch_size, rank=rank, size=size) for rank in range(size)]
    counts = np.array([plan.sizes.sum(axis=(1, 2)) * (plan.shares > 0).all(axis=1) for plan in plans])
    expected = [min(batch_size, num_examples - start) for start in range(0, num_examples, batch_size)]
    assert counts.sum(axis=0).tolist() == expected
    assert len(expected) == steps_of_epoch(num_examples, batch_size)
    assert counts.min() >= 0
    # The stratum at either end of a rank's range may be shared with the neighbour.
    assert np.abs(counts - np.array(expected) / size).max() < 2
    if min(batch_size, num_examples) % size == 0:
        assert (counts[:, :-1] == min(batch_size, num_examples) // size).all()
    for rank, plan in enumerate(plans):
        start, stop = balanced_range(num_examples, size, rank)
        assert plan.batches.tolist() == expected
        assert plan.num_ranks == size
        assert plan.num_examples(0, len(plan)) == stop - start
        assert [plan.num_examples(step, step + 1) for step in range(len(plan))] == counts[rank].tolist()
        assert visited(plan) == list(range(stop - start))
        assert sorted(plan.order) == list(range(stop - start))


@pytest.mark.parametrize("size", [1, 3])
def test_means_of_all_parts_times_their_shares_are_the_mean_over_the_batch(size: int) -> None:
    values = np.random.default_rng(0).random(50)
    order, sizes = epoch_batches(KEY, 50, 16)
    plans = [plan_steps(KEY, 50, 16, rank=rank, size=size) for rank in range(size)]
    for step, batch in enumerate(np.split(values[order], np.cumsum(sizes)[:-1])):
        mean = 0.0
        for rank, plan in enumerate(plans):
            first, _ = balanced_range(50, size, rank)
            part = values[first + plan.order[visited(plan, step, step + 1)]]
            mean += part.sum() / max(1, len(part)) * plan.shares[step].item()
        assert mean == pytest.approx(batch.mean())


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize(("num_examples", "batch_size"), [(509, 64), (60, 7), (9, 100)])
def test_a_batch_is_the_same_on_any_number_of_ranks(num_examples: int, batch_size: int, size: int) -> None:
    order, sizes = epoch_batches(KEY, num_examples, batch_size)
    plans = [plan_steps(KEY, num_examples, batch_size, rank=rank, size=size) for rank in range(size)]
    for step, batch in enumerate(np.split(order, np.cumsum(sizes)[:-1])):
        together = [
            balanced_range(num_examples, size, rank)[0] + plan.order[visited(plan, step, step + 1)]
            for rank, plan in enumerate(plans)
        ]
        assert np.concatenate(together).tolist() == batch.tolist()


def test_order_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    order, sizes = epoch_batches((1, 1), 100, 16)
    assert sorted(order) == list(range(100))
    assert sizes.tolist() == [16, 16, 16, 16, 16, 16, 4]
    assert order.dtype == np.int32
    assert (order == epoch_batches((1, 1), 100, 16)[0]).all()
    for key in ((2, 1), (1, 2), (1, 1, 1)):
        assert (order != epoch_batches(key, 100, 16)[0]).any()
    # The first of several orders, such as that of client 0, is the order where there is only one.
    assert (order == epoch_batches((1, 1, 0), 100, 16)[0]).all()


@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_parts_of_a_step_are_even_and_none_is_empty(num_parts: int) -> None:
    whole, split = plan_steps(KEY, 509, 64), plan_steps(KEY, 509, 64, num_parts=num_parts)
    assert (split.order == whole.order).all()
    assert visited(split) == visited(whole)
    assert split.sizes.min() >= 1
    assert (split.sizes.max(axis=1) - split.sizes.min(axis=1)).max() <= 1
    assert split.begins.max() < 509
    assert split.shares.sum(axis=1) == pytest.approx(1)


def test_steps_are_regular_where_only_the_last_one_differs() -> None:
    steps = plan_steps(KEY, 509, 64, num_parts=2)
    assert steps.regular_parts == ((32, 1 / 2), (32, 1 / 2))
    assert (steps.regular_rows() == steps.order[: 7 * 64].reshape(7, 64)).all()
    assert plan_steps(KEY, 509, 64, rank=0, size=3).regular_parts is None
    # One example a step, which counts in some of them only.
    assert plan_steps(KEY, 509, 4, rank=0, size=8).regular_parts is None
