"""The ranks as a TensorFlow cluster: TF_CONFIG made of what MPI knows, whatever started them."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mpi_train import world as worlds
from mpi_train.errors import EXIT_PLATFORM, PlatformError
from mpi_train.world import World

_FIRST_PORT, _NUM_PORTS = 20_000, 10_000
"""Below those that Linux gives out by itself (32,768 and on)."""


def tf_config(world: World) -> str:
    """The value of TF_CONFIG for this rank; on all ranks together.

    Raises:
        PlatformError: no free port on some node; on all ranks.
    """
    with world.together():
        port = _free_port(os.environ.get("SLURM_JOB_ID"), world.local_rank)
    ports = world.gather_all(port)
    # The name of a lone machine need not resolve.
    hosts = ["127.0.0.1"] * world.size if len(set(world.hosts)) == 1 else world.hosts
    workers = [f"{host}:{port}" for host, port in zip(hosts, ports, strict=True)]
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": world.rank}})


def _free_port(job_id: str | None, local_rank: int) -> int:
    """A port that nobody listens at; under Slurm one that follows from the job, so that jobs keep apart."""
    if job_id is None:
        tried = [0]
    else:
        first = int(job_id) * 100 + local_rank
        tried = [_FIRST_PORT + (first + turn * 1009) % _NUM_PORTS for turn in range(20)]
    for port in tried:
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise PlatformError(
        f"expected a free TCP port on {socket.gethostname()}. "
        f"Received: {len(tried)} in use, between {min(tried)} and {max(tried)}",
        remedy="scancel other jobs of this node, or submit again: the ports follow from the job's number",
    )


@contextmanager
def time_limit(world: World, seconds: float, what: str, remedy: str) -> Iterator[None]:
    """Ends all ranks with code 4 when the block takes longer: for what waits for its peers without end."""

    def give_up() -> None:
        if world.is_root:
            error = PlatformError(f"{what} did not come about in {seconds:g} s", remedy=remedy)
            print(f"error: {error}", file=sys.stderr, flush=True)
        worlds.leave(world, EXIT_PLATFORM)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
