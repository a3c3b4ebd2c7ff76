"""Ranks of a job: their numbers and hosts, agreement between them, and common failure.

Rank and size come from MPI alone. The launcher's variables serve only to detect that MPI and the launcher
disagree, in which case four processes would silently become four worlds of size 1.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, TypeVar, cast

import numpy as np

from mpi_train.runtime.errors import JobError, PlatformError

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")

# (variable with the rank of this process, variable with the number of processes, name), nearest launcher
# first: mpiexec inside a Slurm step counts for more than the step.
_LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "Open MPI's mpiexec"),
    ("PMI_RANK", "PMI_SIZE", "mpiexec or srun (PMI)"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "srun"),
)


class Launcher(NamedTuple):
    """Program that started this process, with the rank and the size that the program assigned."""

    name: str
    rank: int
    size: int


def launcher(environ: Mapping[str, str] = os.environ) -> Launcher | None:
    """Return the launcher's own count of processes, or None if this process was started alone."""
    for rank, size, name in _LAUNCHERS:
        if size in environ and rank in environ:
            return Launcher(name, int(environ[rank]), int(environ[size]))
    return None


@dataclass(frozen=True)
class World:
    """Processes of one job. ``World()`` is a single process without MPI.

    Attributes:
        rank: Number of this process, from 0 to ``size - 1``. Rank 0 is the root: it alone writes and prints.
        size: Number of processes.
        local_rank: Number of this process among those of its node.
        local_size: Number of processes on this node.
        hosts: Host name of each rank, in rank order.
        comm: MPI communicator, or None without MPI.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    hosts: tuple[str, ...] = field(default_factory=lambda: (socket.gethostname(),))
    comm: MPI.Intracomm | None = None

    @property
    def is_root(self) -> bool:
        return self.rank == 0

    @property
    def name(self) -> str:
        """Name of this rank for messages: ``rank 2 on n3``."""
        return f"rank {self.rank} on {self.hosts[self.rank]}"

    def gather_all(self, value: T) -> list[T]:
        """Return every rank's ``value``, in rank order. Slow, as it pickles."""
        return [value] if self.comm is None else self.comm.allgather(value)

    def gather_rows(self, row: np.ndarray) -> np.ndarray:
        """Return every rank's ``row``, float64 (n,), as one array (ranks, n). Fast, without pickling."""
        rows = np.tile(row, (self.size, 1))
        if self.comm is not None:
            self.comm.Allgather(row, rows)
        return rows

    def broadcast(self, array: np.ndarray) -> None:
        """Overwrite ``array`` on every rank with the root's."""
        if self.comm is not None:
            self.comm.Bcast(array, root=0)

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Return the element-wise sum of ``array`` over all ranks, as a new array."""
        return self._reduce(array, "SUM")

    def maxima(self, array: np.ndarray) -> np.ndarray:
        """Return the element-wise maximum of ``array`` over all ranks, as a new array."""
        return self._reduce(array, "MAX")

    def _reduce(self, array: np.ndarray, operation: Literal["SUM", "MAX"]) -> np.ndarray:
        result = np.array(array)
        if self.comm is not None:
            from mpi4py import MPI

            self.comm.Allreduce(MPI.IN_PLACE, result, op=getattr(MPI, operation))
        return result

    def maximum(self, value: float) -> float:
        """Return the largest ``value`` of all ranks."""
        return float(self.maxima(np.array([value]))[0])

    def send(self, array: np.ndarray, *, to: int) -> None:
        """Send ``array`` to a rank that calls ``receive``."""
        assert self.comm is not None
        self.comm.Send(np.ascontiguousarray(array), dest=to)

    def receive(self, like: np.ndarray, *, source: int) -> np.ndarray:
        """Receive an array of the shape and type of ``like`` from the rank ``source``."""
        assert self.comm is not None
        array = np.empty_like(like)
        self.comm.Recv(array, source=source)
        return array

    def send_object(self, value: Any, *, to: int) -> None:
        """Send a value that pickles to a rank that calls ``receive_object``."""
        assert self.comm is not None
        self.comm.send(value, dest=to)

    def receive_object(self, *, source: int) -> Any:
        """Receive a value from the rank ``source``, which calls ``send_object``."""
        assert self.comm is not None
        return self.comm.recv(source=source)

    def split(self, group: int) -> World:
        """Return a world of the ranks that pass the same ``group``, in rank order. Collective."""
        if self.comm is None:
            return self
        comm = cast("MPI.Intracomm", self.comm.Split(group, self.rank))
        hosts = tuple(comm.allgather(self.hosts[self.rank]))
        here = [rank for rank, host in enumerate(hosts) if host == hosts[comm.rank]]
        return World(comm.rank, comm.size, here.index(comm.rank), len(here), hosts, comm)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.comm is not None:
            self.comm.Barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block on all ranks and raise a ``JobError`` of any rank on all of them.

        Otherwise a rank that found its shard corrupt would exit, and the others would wait for it in the next
        collective for ever. The error of the lowest rank is raised, with the name of that rank.
        """
        mine: JobError | None = None
        try:
            yield
        except JobError as error:
            mine = error
        errors = self.gather_all(mine)
        for rank, theirs in enumerate(errors):
            if theirs is not None:
                if None in errors:
                    theirs.message = f"[rank {rank} on {self.hosts[rank]}] {theirs.message}"
                raise theirs


def alone(*, job: str) -> World:
    """Return the world of a job that is one process.

    Raises:
        PlatformError: A launcher started several processes, which would overwrite each other's results.
    """
    started = launcher()
    if started is not None and started.size > 1:
        raise PlatformError(
            f"{job} is one process. Got: {started.size} processes, started by {started.name}",
            remedy=f"python jobs/{job}.py, without a launcher (under srun: --ntasks=1)",
        )
    return World()


def join() -> World:
    """Start MPI and return this process's place in ``COMM_WORLD``.

    From here on an uncaught exception on any rank ends all ranks.

    Raises:
        PlatformError: There is no MPI library, or MPI and the launcher disagree about the number of ranks.
    """
    _prefer_libfabric()
    try:
        import mpi4py

        # Some collectives call MPI from two threads at once; "serialized" would do for the others. But MPICH
        # yields the core while it waits at this level only: with 4 ranks on 2 cores a step takes 1.3 ms
        # instead of 200 ms.
        mpi4py.rc.thread_level = "multiple"
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise PlatformError(
            f"MPI did not start: {str(error).splitlines()[0]}",
            remedy="make doctor (it shows which MPI library is loaded, and from where)",
        ) from error
    vendor = "{vendor} {version}".format_map(mpi_library())
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise PlatformError(
            "expected an MPI library that any thread may call (MPI_THREAD_SERIALIZED or more). "
            f"Got: level {MPI.Query_thread()} from {vendor}",
            remedy="another build of the MPI library, or the wheel's: make setup MPI=wheel",
        )
    comm = MPI.COMM_WORLD
    started = launcher()
    if started is not None and started.size != comm.size:
        raise PlatformError(
            f"{started.name} started {started.size} processes, but {vendor} sees a world of {comm.size}: "
            f"the launcher and the MPI library use different protocols",
            remedy="use the mpiexec of the same MPI (make doctor shows both); under Slurm, "
            "srun --mpi=pmi2 for MPICH and Intel MPI, srun --mpi=pmix for Open MPI "
            "(or export SLURM_MPI_TYPE)",
        )
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    hosts = tuple(comm.allgather(socket.gethostname()))
    world = World(comm.rank, comm.size, node.rank, node.size, hosts, comm)
    node.Free()
    if world.size > 1:
        _abort_on_uncaught(world)
    return world


def _prefer_libfabric() -> None:
    """Keep the wheel's MPICH from UCX if srun starts it over pmi2; before MPI is loaded.

    By UCX each node sends 4,096 bytes for its address, most of them whatever lies behind it in memory. The
    pmi2 of Slurm reads at most 1,024 characters of a line, so that a start fails or hangs now and then. By
    libfabric a node sends its address alone.
    """
    is_wheel = (Path(sys.prefix) / "lib/libmpi.so.12").exists() and "MPI4PY_LIBMPI" not in os.environ
    if is_wheel and os.environ.keys() >= {"SLURM_STEP_ID", "PMI_FD"}:
        os.environ.setdefault("MPIR_CVAR_CH4_NETMOD", "ofi")


def speaks() -> bool:
    """Return True in the process that may print: rank 0 of MPI, or of the launcher before MPI starts."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.COMM_WORLD.size > 1:
        return bool(mpi.COMM_WORLD.rank == 0)
    started = launcher()
    return started is None or started.rank == 0


before_abort: list[Callable[[], None]] = []
"""Functions to call before this process ends all ranks."""


def _abort_on_uncaught(world: World) -> None:
    """End all ranks if one ends by an exception; otherwise the others would wait for that rank for ever."""
    from mpi4py import MPI

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, MPI.Exception):
            # Mostly the rank at the other end is lost. Meanwhile the watchdog names it and ends this process.
            time.sleep(2)
        text = "".join(traceback.format_exception(kind, error, trace))
        print(f"[{world.name}] uncaught exception, ending all {world.size} ranks\n{text}", file=sys.stderr)
        for action in before_abort:
            action()
        _flush()
        MPI.COMM_WORLD.Abort(1)
        os._exit(1)  # Abort of MPICH returns, until the launcher kills the process

    sys.excepthook = hook


def _flush() -> None:
    """Hand the output to the launcher, which discards what it has not read when a rank aborts."""
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(0.5)


def leave(world: World, code: int) -> NoReturn:
    """End this process at once with ``code``, from any thread; the launcher ends the others.

    Hydra, the ``mpiexec`` of MPICH and Intel MPI, kills the other ranks if one closes its connection. But
    this races with Hydra's own reaping: sometimes Hydra reports a killed rank's code instead, or waits for a
    stopped rank for ever. The code of an abort is always reported.
    """
    _flush()
    if world.comm is not None and "MPI_LOCALNRANKS" in os.environ:
        threading.Thread(target=world.comm.Abort, args=(code,), daemon=True).start()
        time.sleep(2)  # Abort of MPICH returns, until the launcher kills the process; it may wait for a lock
    os._exit(code)


def mpi_library() -> dict[str, Any]:
    """Return vendor, version and file of the MPI library that is loaded in this process."""
    from mpi4py import MPI

    vendor, version = MPI.get_vendor()
    mapped = {Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines()}
    path = next((str(file) for file in mapped if file.name.startswith(("libmpi.so", "libmpich.so"))), "")
    return {"vendor": vendor, "version": ".".join(map(str, version)), "library": path}
