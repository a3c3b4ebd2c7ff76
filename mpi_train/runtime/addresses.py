"""TCP addresses of the ranks, for libraries that do not use MPI (TensorFlow's gRPC, PyTorch's gloo)."""

from __future__ import annotations

import json
import os
import socket
from contextlib import ExitStack

from mpi_train.runtime.errors import PlatformError
from mpi_train.runtime.world import World

_FIRST_PORT, _NUM_PORTS = 20_000, 10_000
"""Range of ports below those that Linux assigns by itself (from 32,768)."""
_CONNECT_S = 10.0


def tf_config(world: World) -> str:
    """Return the value of TF_CONFIG for this rank. Collective; raises as ``addresses``."""
    workers = addresses(world)
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": world.rank}})


def addresses(world: World) -> list[str]:
    """Return ``host:port`` of each rank, with a port on which no program listens. Collective.

    Each rank is first called by another rank: TensorFlow would wait for a peer that it cannot reach for ever,
    and hold the interpreter's lock meanwhile.

    Raises:
        PlatformError: A node has no free port, or a rank cannot reach another; on all ranks.
    """
    with ExitStack() as stack:
        with world.together():
            listener = stack.enter_context(_listen(os.environ.get("SLURM_JOB_ID"), world.local_rank))
        ports = world.gather_all(int(listener.getsockname()[1]))
        # The name of a single machine need not resolve.
        hosts = ["127.0.0.1"] * world.size if len(set(world.hosts)) == 1 else list(world.hosts)
        with world.together():
            peer = (world.rank + 1) % world.size
            _call(hosts[peer], ports[peer], peer)
    world.barrier()
    return [f"{host}:{port}" for host, port in zip(hosts, ports, strict=True)]


def _listen(job_id: str | None, local_rank: int) -> socket.socket:
    """Listen on a free port; under Slurm the port follows from the job's number."""
    if job_id is None:
        tried = [0]
    else:
        first = int(job_id) * 100 + local_rank
        tried = [_FIRST_PORT + (first + turn * 1009) % _NUM_PORTS for turn in range(20)]
    for port in tried:
        try:
            return socket.create_server(("", port))
        except OSError:
            continue
    raise PlatformError(
        f"expected a free TCP port on {socket.gethostname()}. "
        f"Got: {len(tried)} in use, between {min(tried)} and {max(tried)}",
        remedy="scancel other jobs on this node, or submit again: the ports follow from the job's number",
    )


def _call(host: str, port: int, rank: int) -> None:
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        raise PlatformError(
            f"expected rank {rank} to answer at {host}:{port}. Got: {error}",
            remedy="ask the site whether compute nodes reach each other by name over TCP, at ports "
            f"{_FIRST_PORT} to {_FIRST_PORT + _NUM_PORTS - 1}; or jobs/mpi.py, which does not need it",
        ) from error
