"""In two levels: the mean, whichever ranks share a node."""

import numpy as np
import pytest

from mpi_train.collectives import hierarchical
from mpi_train.collectives.base import all_reduce_bytes
from mpi_train.collectives.choose import mean_all_reduce
from mpi_train.collectives.hierarchical import HierarchicalAllReduce
from mpi_train.collectives.plain import PlainAllReduce
from mpi_train.equality import check_equal
from mpi_train.errors import PlatformError
from mpi_train.world import World

# Node of each rank. The memory that the "nodes" share is real, and so are the messages between them.
LAYOUTS = [
    pytest.param(lambda rank: rank // 2, id="pairs"),
    pytest.param(lambda rank: rank % 2, id="dealt"),
    pytest.param(lambda rank: min(rank, 1), id="one_and_the_rest"),
    pytest.param(lambda rank: rank, id="one_each"),
]


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("node_of", LAYOUTS)
@pytest.mark.parametrize("length", [1, 16, 1001, 100_000])
def test_the_mean_in_the_same_bits_on_all_ranks(
    node_of, length: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = world.split(node_of(world.rank))
    monkeypatch.setattr(hierarchical, "_of_one_node", lambda world: node)
    reduce = HierarchicalAllReduce(world, length)
    for call in range(5):
        vectors = [
            np.random.default_rng([call, rank]).random(length, np.float32) for rank in range(world.size)
        ]
        mean = reduce.mean(vectors[world.rank])
        assert np.allclose(mean, np.mean(vectors, axis=0), rtol=1e-6)
        check_equal(world, [mean], when=f"call {call}")


@pytest.mark.mpi(min_size=4)
def test_leaders_alone_send_to_other_nodes_and_each_its_part(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = world.split(world.rank % 2)
    monkeypatch.setattr(hierarchical, "_of_one_node", lambda world: node)
    length = 1000
    reduce = HierarchicalAllReduce(world, length)
    within = all_reduce_bytes(4 * length, node.size)
    between = world.sum(np.array([reduce.bytes_per_call - within]))[0]
    assert between == 2 * all_reduce_bytes(4 * length, 2)  # as if each node were one rank


@pytest.mark.mpi(min_size=2)
def test_too_little_shared_memory_is_said_by_all_ranks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    too_long = 2**46
    with pytest.raises(PlatformError, match=r"--collective hierarchical: expected .* of shared memory"):
        HierarchicalAllReduce(world, too_long)
    assert isinstance(mean_all_reduce(world, 16), HierarchicalAllReduce)
    monkeypatch.setattr("mpi_train.collectives.choose.has_room", lambda world, length: world.rank != 1)
    assert isinstance(mean_all_reduce(world, 16), PlainAllReduce)
