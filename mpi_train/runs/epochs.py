"""An epoch, or what is left of one that was interrupted, laid out for the rank that trains it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpi_train.data.examples import Examples
from mpi_train.runs.session import Session
from mpi_train.training.steps import Steps, dealt, epoch_order, plan_steps


@dataclass(frozen=True)
class Epoch:
    """What a rank does in an epoch.

    Attributes:
        number: Counted from 1.
        leg: How many other numbers of ranks have had a part in it.
        examples: The rank's.
        order: int32 (n,): in which it visits them.
        steps: How they are laid out in steps.
        first: Steps that are done.
    """

    number: int
    leg: int
    examples: Examples
    order: np.ndarray
    steps: Steps
    first: int


def lay_out(session: Session, examples: Examples, *, num_parts: int = 1) -> Epoch:
    """The session's present epoch; on all ranks together.

    Args:
        session: Tells where the run is.
        examples: The rank's, of a whole epoch.
        num_parts: Devices of the rank.

    Raises:
        DataError: examples that other ranks had cannot be read; on all ranks.
    """
    run, number = session.run, session.position.epoch
    config, world, peers = run.config, run.world, run.peers
    closed, first = session.rest_of_epoch()
    num_closed = sum(leg.num_steps for leg in closed)
    if closed:
        # What is left of the epoch is dealt to another number of ranks than began it.
        mine = dealt(run.num_train, config.batch_size, config.seed, number, closed, peers.rank, peers.size)
        with world.together():
            examples = run.shards.read_some("train", mine)
    num_left = run.num_train - num_closed * config.batch_size
    steps = plan_steps(num_left, config.batch_size, rank=peers.rank, size=peers.size, num_parts=num_parts)
    order = epoch_order(config.seed, number, peers.rank, len(examples), len(closed))
    session.begin_epoch(num_closed + len(steps))
    return Epoch(number, len(closed), examples, order, steps, first)
