"""The collectives that give the mean, but for rounding: through MPI, and in two levels."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from mpi_train.collectives import hierarchical
from mpi_train.collectives.base import AllReduce, all_reduce_bytes
from mpi_train.collectives.hierarchical import HierarchicalAllReduce, mean_all_reduce
from mpi_train.collectives.plain import PlainAllReduce
from mpi_train.runtime.errors import PlatformError
from mpi_train.runtime.world import World

# Node of each rank. The memory that the "nodes" share is real, and so are the messages between them.
LAYOUTS = [
    pytest.param(lambda rank: rank // 2, id="pairs"),
    pytest.param(lambda rank: rank % 2, id="dealt"),
    pytest.param(lambda rank: min(rank, 1), id="one_and_the_rest"),
    pytest.param(lambda rank: rank, id="one_each"),
]


@pytest.mark.ranks(4)
@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("kind", [PlainAllReduce, HierarchicalAllReduce])
@pytest.mark.parametrize("length", [1, 16, 1001, 300_000])
def test_collectives_give_the_mean_in_the_same_bits_on_all_ranks(
    kind: type[AllReduce], length: int, world: World, check_mean
) -> None:
    check_mean(kind(world, length), length)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("kind", [PlainAllReduce, HierarchicalAllReduce])
def test_collectives_keep_their_calls_apart(world: World, kind: type[AllReduce]) -> None:
    reduce = kind(world, 5000)

    @tf.function(autograph=False)
    def run() -> tf.Tensor:
        def body(i: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            mine = tf.fill([5000], tf.cast(i + world.rank, tf.float32))
            return i + 1, total + reduce(mine)

        start = (0, tf.zeros([5000]))
        return tf.while_loop(lambda i, _: i < 200, body, start, parallel_iterations=1)[1]

    expected = sum(i + (world.size - 1) / 2 for i in range(200))
    assert (run().numpy() == expected).all()
    assert reduce.log.take_traffic(world).sent_bytes == 200 * reduce.log.bytes_per_call


@pytest.mark.ranks(4)
@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("node_of", LAYOUTS)
@pytest.mark.parametrize("length", [1, 16, 1001, 100_000])
def test_in_two_levels_it_is_the_mean_whoever_shares_a_node(
    node_of: Callable[[int], int], length: int, world: World, check_mean, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = world.split(node_of(world.rank))
    monkeypatch.setattr(hierarchical, "_node_of", lambda world: node)
    check_mean(HierarchicalAllReduce(world, length), length)


@pytest.mark.ranks(4)
@pytest.mark.mpi(min_size=4)
def test_leaders_alone_send_to_other_nodes_and_each_its_part(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = world.split(world.rank % 2)
    monkeypatch.setattr(hierarchical, "_node_of", lambda world: node)
    length = 1000
    reduce = HierarchicalAllReduce(world, length)
    within = all_reduce_bytes(4 * length, node.size)
    between = world.sum(np.array([reduce.log.bytes_per_call - within]))[0]
    assert between == 2 * all_reduce_bytes(4 * length, 2)  # as if each node were one rank


@pytest.mark.mpi(min_size=2)
def test_too_little_shared_memory_is_said_by_all_ranks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    too_long = 2**46
    with pytest.raises(PlatformError, match=r"--collective hierarchical: expected .* of shared memory"):
        HierarchicalAllReduce(world, too_long)
    assert isinstance(mean_all_reduce(world, 16), HierarchicalAllReduce)
    monkeypatch.setattr("mpi_train.collectives.hierarchical.has_room", lambda world, length: world.rank != 1)
    assert isinstance(mean_all_reduce(world, 16), PlainAllReduce)
