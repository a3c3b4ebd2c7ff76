"""The Slurm cluster on this machine, ``slurm/local_cluster.sh``: its nodes, and the rate of their links."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpi_train.runtime.errors import PlatformError, UsageError

_RATE = re.compile(r"[1-9][0-9]{0,4}[mg]bit|none")
_LIMIT_S = 60.0


def check_rate(flag: str, rate: str) -> None:
    """Raises ``UsageError`` where ``rate``, given by ``flag``, is none that a link can have."""
    if not _RATE.fullmatch(rate):
        raise UsageError(
            f"{flag}: expected rates such as 10gbit, 1gbit and 100mbit, or none for no limit. "
            f"Got: {rate or 'nothing'}"
        )


class LocalCluster:
    """The running cluster.

    Args:
        script: ``local_cluster.sh``.
        num_nodes: How many nodes are needed.

    Raises:
        PlatformError: it is not up, is not well or has fewer nodes, or we may not change it.
    """

    def __init__(self, script: Path, num_nodes: int) -> None:
        self._script = script
        remedy = f"as root: make slurm-up NODES={num_nodes}"
        if os.geteuid() != 0:
            raise PlatformError(
                f"expected root, who alone can limit the nodes' links. "
                f"Got: {pwd.getpwuid(os.geteuid()).pw_name}",
                remedy="the same command as root, or jobs/mpi.py on a network that is slow by itself",
            )
        done = self._call("status")
        num_found = len(re.findall(r"^node-", done.stdout, re.MULTILINE))
        if num_found < num_nodes:
            raise PlatformError(
                f"expected the local Slurm cluster with {num_nodes} nodes. Got: {num_found or 'none'}",
                remedy=remedy,
            )
        if done.returncode:
            raise PlatformError(
                f"expected every daemon and node of the local cluster to be well. Got:\n{done.stdout}",
                remedy=remedy,
            )

    @property
    def rate(self) -> str:
        """What each node can send, and what it can receive: such as ``1gbit``; ``none``: no limit."""
        return self._call("rate").stdout.strip()

    @rate.setter
    def rate(self, rate: str) -> None:
        """Raises ``PlatformError`` where that fails."""
        done = self._call("rate", rate)
        if done.returncode:
            raise PlatformError(f"the nodes' links cannot be limited to {rate}: {done.stderr.strip()}")

    @contextmanager
    def rate_kept(self) -> Iterator[None]:
        """The time in which the rate may be changed; afterwards it is what it was before."""
        before = self.rate
        try:
            yield
        finally:
            self.rate = before

    def _call(self, *words: str) -> subprocess.CompletedProcess[str]:
        # A session of its own: Ctrl-C must not stop the script half-way through the nodes.
        try:
            return subprocess.run(
                [self._script, *words],
                capture_output=True,
                text=True,
                timeout=_LIMIT_S,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise PlatformError(
                f"expected {self._script} {words[0]} to end within {_LIMIT_S:g} s. Got: no answer",
                remedy="as root: make slurm-down, then make slurm-up",
            ) from error
