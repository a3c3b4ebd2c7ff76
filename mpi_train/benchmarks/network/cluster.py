"""Local Slurm cluster of ``slurm/local_cluster.sh``: checks, and the rate of the links of its nodes."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from mpi_train.runtime import launch
from mpi_train.runtime.errors import PlatformError

SCRIPT = launch.CLONE / "slurm/local_cluster.sh"
_LIMIT_S = 60.0


def check(num_nodes: int) -> None:
    """Raise ``PlatformError`` unless the cluster runs with ``num_nodes`` nodes and the user is root."""
    if os.geteuid() != 0:
        raise PlatformError(
            f"expected root, because limiting the links of the nodes needs root. Got: user {os.geteuid()}",
            remedy="the same command as root, or jobs/mpi.py on a slow network",
        )
    done, remedy = _call("status"), f"as root: make slurm-up NODES={num_nodes}"
    num_found = len(re.findall(r"^node-", done.stdout, re.MULTILINE))
    if num_found < num_nodes:
        expected = f"expected the local Slurm cluster with {num_nodes} nodes"
        raise PlatformError(f"{expected}. Got: {num_found or 'none'}", remedy=remedy)
    if done.returncode:
        raise PlatformError(f"expected healthy daemons and nodes. Got:\n{done.stdout}", remedy=remedy)


def set_rate(rate: str) -> None:
    """Limit what each node can send and receive to ``rate``, or ``none``; raises ``PlatformError``."""
    done = _call("rate", rate)
    if done.returncode:
        raise PlatformError(f"the links of the nodes cannot be limited to {rate}: {done.stderr.strip()}")


@contextmanager
def rate_restored() -> Iterator[None]:
    """Restore the rate at the end of a block that changes it."""
    before = _call("rate").stdout.strip()
    try:
        yield
    finally:
        set_rate(before)


def _call(*words: str) -> subprocess.CompletedProcess[str]:
    # In a session of its own, so that Ctrl-C does not stop the script between two nodes.
    run = functools.partial(subprocess.run, capture_output=True, text=True, start_new_session=True)
    try:
        return run([SCRIPT, *words], timeout=_LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise PlatformError(
            f"expected {SCRIPT} {words[0]} to end within {_LIMIT_S:g} s. Got: no answer",
            remedy="as root: make slurm-down, then make slurm-up",
        ) from error
