"""TCP addresses of the ranks, as TensorFlow's cluster uses them."""

from __future__ import annotations

import json
import os
import socket

import pytest

from mpi_train.runtime import addresses
from mpi_train.runtime.errors import PlatformError
from mpi_train.runtime.world import World


@pytest.mark.ranks(4)
@pytest.mark.mpi
def test_every_rank_has_an_address_and_knows_its_own(world: World) -> None:
    config = json.loads(addresses.tf_config(world))
    workers = config["cluster"]["worker"]
    assert len(set(workers)) == world.size
    assert config["task"] == {"type": "worker", "index": world.rank}
    everyone = world.gather_all(workers)
    assert everyone == [workers] * world.size


def test_under_slurm_the_port_follows_from_the_job() -> None:
    # A job number of its own, as other ranks run this test on the same machine at the same time.
    job_id, other_id = str(os.getpid()), str(os.getpid() + 50)
    with addresses._listen(job_id, 2) as first:
        port = first.getsockname()[1]
        assert 20_000 <= port < 30_000
        with addresses._listen(job_id, 2) as second:  # the first port is taken
            assert 20_000 <= second.getsockname()[1] < 30_000
            assert second.getsockname()[1] != port
    with addresses._listen(job_id, 2) as again:
        assert again.getsockname()[1] == port
    with addresses._listen(other_id, 2) as other:
        assert other.getsockname()[1] != port


def test_a_rank_that_does_not_answer_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(PlatformError, match=f"expected rank 3 to answer at 127.0.0.1:{port}"):
            addresses._call("127.0.0.1", port, 3)


def test_when_all_ports_are_taken_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*_: object) -> socket.socket:
        raise OSError("in use")

    monkeypatch.setattr(socket, "create_server", taken)
    with pytest.raises(PlatformError, match="expected a free TCP port"):
        addresses._listen("1", 0)
