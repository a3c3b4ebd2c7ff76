"""What the ranks agree on between chunks, and what an epoch in several parts comes to."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
import pytest

from mpi_train.runs.coordinator import Coordinator
from mpi_train.runtime.world import World
from mpi_train.training.loop import Chunk
from mpi_train.training.totals import EpochTotals, RankTimes


def chunk(*, loss: float = 0.0, **parts: Any) -> Chunk:
    return Chunk(loss=loss, **parts)


def test_chunks_end_where_a_checkpoint_is_due() -> None:
    control = Coordinator(World(), every_steps=10)
    assert [control.limit(0, 8), control.limit(8, 30), control.limit(10, 30)] == [8, 10, 20]
    assert Coordinator(World()).limit(8, 30) == 30
    saves = [
        control.agree(chunk(first=first, stop=stop, elapsed_s=1, finite=True)).save
        for first, stop in ((0, 8), (8, 10), (10, 19), (19, 41))
    ]
    assert saves == [False, True, False, True]


def test_time_asks_for_checkpoints_too() -> None:
    control = Coordinator(World(), every_s=0.05)
    assert not control.agree(chunk(first=0, stop=1, elapsed_s=0, finite=True)).save
    time.sleep(0.06)
    assert control.agree(chunk(first=1, stop=2, elapsed_s=0, finite=True)).save
    control.saved()
    assert not control.agree(chunk(first=2, stop=3, elapsed_s=0, finite=True)).save


@pytest.mark.ranks(4)
@pytest.mark.mpi
def test_what_one_rank_knows_all_ranks_do(world: World) -> None:
    last = world.rank == world.size - 1
    control = Coordinator(world)
    with control.listening():
        count = 10 + world.rank
        calm = control.agree(chunk(first=0, stop=1, elapsed_s=world.rank, finite=True, loss=2.0, count=count))
        assert (calm.slowest_s, calm.stop, calm.diverged) == (world.size - 1, False, False)
        assert calm.by_rank.elapsed_s.tolist() == list(range(world.size))
        assert calm.by_rank.loss.tolist() == [2.0 * (10 + rank) for rank in range(world.size)]
        assert np.isnan(calm.by_rank.exchange_s).all()
        if last:
            os.kill(os.getpid(), signal.SIGTERM)
        asked = control.agree(chunk(first=1, stop=2, elapsed_s=1, finite=not last))
    assert (asked.stop, asked.diverged, control.stopping) == (True, True, True)
    assert control.reason == ""  # forgotten with the end of the run
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_ctrl_c_does_not_wait() -> None:
    with Coordinator(World()).listening():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_parts_of_an_epoch_add_up() -> None:
    def part(count: int, ranks: int) -> EpochTotals:
        times = [RankTimes(compute_s=1, moving_s=2, waiting_s=3, host_s=4)] * ranks
        return EpochTotals(loss=2.0 * count, correct=count / 2, count=count, train_s=10, by_rank=times)

    whole = part(30, 2) + part(10, 2)
    assert (whole.count, whole.mean_loss, whole.accuracy, whole.train_s) == (40, 2, 0.5, 20)
    assert whole.by_rank == [RankTimes(compute_s=2, moving_s=4, waiting_s=6, host_s=8)] * 2
    assert (EpochTotals() + part(10, 3)).by_rank == part(10, 3).by_rank
    assert (part(30, 2) + part(10, 3)).by_rank == []
