"""Checks that run in a subprocess, because loading a broken MPI or TensorFlow can crash or hang the caller.

``python -m mpi_train.cluster.probes NAME`` prints the findings of a probe as one line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpi_train.runtime import launch, machine
from mpi_train.runtime import world as worlds
from mpi_train.runtime.errors import JobError, PlatformError

LIMIT_S = 60.0
"""Seconds that a probe may take."""


def run(name: str, *, launcher: Sequence[str] = ()) -> dict[str, Any]:
    """Run a probe (``mpi_library``, ``ring`` or ``tensorflow``) and return its findings.

    The ``launcher`` is the command that starts the probe's processes, such as ``mpiexec -n 2``.

    Raises:
        PlatformError: The probe failed, crashed, or took longer than ``LIMIT_S``.
    """
    command = [*launcher, sys.executable, "-m", "mpi_train.cluster.probes", name]
    environ = {**launch.environment(), "TF_CPP_MIN_LOG_LEVEL": "3"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environ, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise PlatformError(f"no answer after {LIMIT_S:.0f} s: {' '.join(command)}") from None
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        last = (errors.strip() or f"exit code {process.returncode}").splitlines()[-1]
        raise PlatformError(f"{' '.join(command)} failed: {last}", remedy="make clean setup")
    found: dict[str, Any] = json.loads(lines[-1])
    if "error" in found:
        raise PlatformError(found["error"], remedy=found["remedy"])
    return found


def _mpi_library() -> dict[str, Any]:
    worlds.join()
    return worlds.mpi_library()


def _ring() -> dict[str, Any]:
    """Pass the number of each rank to the next one; return the number of ranks and the time."""
    world = worlds.join()
    assert world.comm is not None
    received = np.empty(1, np.int32)
    world.barrier()
    start = time.perf_counter()
    world.comm.Sendrecv(np.array([world.rank], np.int32), (world.rank + 1) % world.size, recvbuf=received)
    lap_us = (time.perf_counter() - start) * 1e6
    if received[0] != (world.rank - 1) % world.size:
        raise PlatformError(f"{world.name} expected the number of the previous rank. Got: {received[0]}")
    return {"size": world.size, "lap_us": lap_us}


def _tensorflow() -> dict[str, Any]:
    import tensorflow as tf  # noqa: F401

    return machine.describe(worlds.World())


_PROBES = {"mpi_library": _mpi_library, "ring": _ring, "tensorflow": _tensorflow}


if __name__ == "__main__":
    try:
        answer = _PROBES[sys.argv[1]]()
    except JobError as problem:
        answer = {"error": problem.message, "remedy": problem.remedy}
    if worlds.speaks():
        print(json.dumps(answer))
