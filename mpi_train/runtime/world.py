"""The ranks of a job: who am I, how many are we, and how do we agree. The one module that imports MPI.

Rank and size come from MPI alone; the launcher's variables serve only to notice that MPI and the
launcher disagree, which is how four processes silently become four worlds of size 1.
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
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import numpy as np

from mpi_train.runtime.errors import JobError, PlatformError

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")

# (variable with this process's rank, variable with the number of processes, who sets them), nearest
# launcher first: mpiexec inside a Slurm step counts for more than the step.
_LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "Open MPI's mpiexec"),
    ("PMI_RANK", "PMI_SIZE", "mpiexec or srun (PMI)"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "srun"),
)


@dataclass(frozen=True)
class Launcher:
    """What the program that started this process says of it."""

    name: str
    rank: int
    size: int


def launcher(environ: Mapping[str, str] = os.environ) -> Launcher | None:
    """The launcher's own count of processes, or None when this process was started alone."""
    for rank, size, name in _LAUNCHERS:
        if size in environ and rank in environ:
            return Launcher(name, int(environ[rank]), int(environ[size]))
    return None


@dataclass(frozen=True)
class World:
    """The processes of one job. ``World()`` is a process on its own, without MPI.

    Attributes:
        rank: This process, from 0 to ``size - 1``; rank 0 is the root, which alone writes and speaks.
        size: Number of processes.
        local_rank: This process among those of its node.
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
        """For messages: ``rank 2 on n3``."""
        return f"rank {self.rank} on {self.hosts[self.rank]}"

    def gather_all(self, value: T) -> list[T]:
        """Every rank's ``value``, in rank order. For small things outside the hot path: it pickles."""
        return [value] if self.comm is None else self.comm.allgather(value)

    def gather_rows(self, row: np.ndarray) -> np.ndarray:
        """Every rank's ``row``, float64 (n,), as one array (ranks, n): small, often, and without pickling."""
        rows = np.empty((self.size, len(row)))
        if self.comm is None:
            rows[0] = row
        else:
            self.comm.Allgather(row, rows)
        return rows

    def broadcast(self, array: np.ndarray) -> None:
        """Overwrites ``array`` on every rank with the root's."""
        if self.comm is not None:
            self.comm.Bcast(array, root=0)

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The element-wise sum of ``array`` over all ranks, as a new array."""
        total = np.array(array)
        if self.comm is not None:
            from mpi4py import MPI

            self.comm.Allreduce(MPI.IN_PLACE, total)
        return total

    def maxima(self, array: np.ndarray) -> np.ndarray:
        """The element-wise maximum of ``array`` over all ranks, as a new array."""
        largest = np.array(array)
        if self.comm is not None:
            from mpi4py import MPI

            self.comm.Allreduce(MPI.IN_PLACE, largest, op=MPI.MAX)
        return largest

    def maximum(self, value: float) -> float:
        """The largest ``value`` of all ranks."""
        return float(self.maxima(np.array([value]))[0])

    def send(self, array: np.ndarray, *, to: int) -> None:
        """Sends ``array`` to a rank that is about to ``receive`` it."""
        assert self.comm is not None
        self.comm.Send(np.ascontiguousarray(array), dest=to)

    def receive(self, like: np.ndarray, *, source: int) -> np.ndarray:
        """The array, of the shape and type of ``like``, that the rank ``source`` sends."""
        assert self.comm is not None
        array = np.empty_like(like)
        self.comm.Recv(array, source=source)
        return array

    def send_object(self, value: Any, *, to: int) -> None:
        """Sends anything that pickles, between ranks of one job."""
        assert self.comm is not None
        self.comm.send(value, dest=to)

    def receive_object(self, *, source: int) -> Any:
        """What the rank ``source`` sends with ``send_object``."""
        assert self.comm is not None
        return self.comm.recv(source=source)

    def split(self, group: int) -> World:
        """A world of the ranks that name the same ``group``, in their order; on all together."""
        if self.comm is None:
            return self
        comm = cast("MPI.Intracomm", self.comm.Split(group, self.rank))
        hosts = tuple(comm.allgather(self.hosts[self.rank]))
        here = [rank for rank, host in enumerate(hosts) if host == hosts[comm.rank]]
        return World(comm.rank, comm.size, here.index(comm.rank), len(here), hosts, comm)

    def barrier(self) -> None:
        if self.comm is not None:
            self.comm.Barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Runs a block on all ranks; a ``JobError`` on any rank is raised on all of them.

        Without this, the rank that found its shard corrupt would leave, and the others would wait
        for it in the next collective for ever. The error of the lowest rank wins, and says where.
        """
        mine: JobError | None = None
        try:
            yield
        except JobError as error:
            mine = error
        errors = self.gather_all(mine)
        first = next((rank for rank, error in enumerate(errors) if error is not None), None)
        if first is None:
            return
        theirs = errors[first]
        assert theirs is not None
        if None in errors:
            theirs.message = f"[rank {first} on {self.hosts[first]}] {theirs.message}"
        raise theirs


def alone(*, job: str) -> World:
    """The world of a job that is one process.

    Raises:
        PlatformError: a launcher started several of them, which would overwrite each other's results.
    """
    started = launcher()
    if started is not None and started.size > 1:
        raise PlatformError(
            f"{job} is one process. Got: {started.size} processes, started by {started.name}",
            remedy=f"python jobs/{job}.py, without a launcher (under srun: --ntasks=1)",
        )
    return World()


def join() -> World:
    """Starts MPI and returns this process's place in ``COMM_WORLD``.

    An uncaught exception on any rank ends all of them from here on.

    Raises:
        PlatformError: no MPI library, or MPI and the launcher disagree about the number of ranks.
    """
    try:
        import mpi4py

        # Some ways to exchange call MPI from two threads at once; the others would do with "serialized". But
        # only at this level does MPICH yield the core while it waits: with 4 ranks on 2 cores a step takes
        # 1.3 ms, not 200.
        mpi4py.rc.thread_level = "multiple"
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise PlatformError(
            f"MPI did not start: {str(error).splitlines()[0]}",
            remedy="make doctor (it says which MPI library is looked for, and where)",
        ) from error
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise PlatformError(
            "expected an MPI library that any thread may call (MPI_THREAD_SERIALIZED or more). "
            f"Got: level {MPI.Query_thread()} from {MPI.get_vendor()[0]}",
            remedy="another build of the MPI library, or the wheel's: make setup MPI=wheel",
        )
    comm = MPI.COMM_WORLD
    started = launcher()
    if started is not None and started.size != comm.size:
        vendor = " ".join((MPI.get_vendor()[0], ".".join(map(str, MPI.get_vendor()[1]))))
        raise PlatformError(
            f"{started.name} started {started.size} processes, but {vendor} sees a world of {comm.size}: "
            f"the launcher and the MPI library do not speak the same protocol",
            remedy="use the mpiexec of the same MPI (make doctor shows both); under Slurm, "
            "srun --mpi=pmi2 for MPICH and Intel MPI, srun --mpi=pmix for Open MPI "
            "(or export SLURM_MPI_TYPE)",
        )
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    world = World(
        rank=comm.rank,
        size=comm.size,
        local_rank=node.rank,
        local_size=node.size,
        hosts=tuple(comm.allgather(socket.gethostname())),
        comm=comm,
    )
    node.Free()
    if world.size > 1:
        _abort_on_uncaught(world)
    return world


def speaks() -> bool:
    """Whether this process is the one that may print: rank 0 of MPI, or of the launcher before MPI."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.COMM_WORLD.size > 1:
        return bool(mpi.COMM_WORLD.rank == 0)
    started = launcher()
    return started is None or started.rank == 0


def _abort_on_uncaught(world: World) -> None:
    """Ends all ranks when one leaves by an exception: otherwise the others wait for it for ever."""
    from mpi4py import MPI

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, MPI.Exception):
            # Most often the rank at the other end is gone. What watches the ranks says which it was, and ends
            # this process meanwhile.
            time.sleep(2)
        text = "".join(traceback.format_exception(kind, error, trace))
        print(f"[{world.name}] uncaught exception, ending all {world.size} ranks\n{text}", file=sys.stderr)
        abort(world, 1)

    sys.excepthook = hook


_BEFORE_ABORT: list[Callable[[], None]] = []


def before_abort(action: Callable[[], None]) -> None:
    """Has ``action`` called before this process ends all ranks."""
    _BEFORE_ABORT.append(action)


def abort(world: World, code: int) -> None:
    """Ends every rank of the job at once with ``code``. Does not return under MPI."""
    for action in _BEFORE_ABORT:
        action()
    if world.comm is not None:
        _say_all()
        world.comm.Abort(code)
        os._exit(code)  # MPICH's comes back, until the launcher kills


def _say_all() -> None:
    """Hands what was printed to the launcher, which throws away what it has not read when a rank aborts."""
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(0.5)


def leave(world: World, code: int) -> NoReturn:
    """Ends this process at once with ``code``, from any thread; the launcher ends the others.

    Hydra, the ``mpiexec`` of MPICH and Intel MPI, kills the other ranks when one closes its connection
    without a word. But that races with its own reaping: now and then it reports a killed rank's code instead,
    or leaves a stopped one, and waits for it for ever. It keeps to the code of an abort.
    """
    _say_all()
    if world.comm is not None and "MPI_LOCALNRANKS" in os.environ:
        threading.Thread(target=world.comm.Abort, args=(code,), daemon=True).start()
        time.sleep(2)  # MPICH's comes back, until the launcher kills; and it may wait for a lock
    os._exit(code)


def mpi_library() -> dict[str, Any]:
    """Vendor, version and file of the MPI library that is loaded in this process."""
    from mpi4py import MPI

    vendor, version = MPI.get_vendor()
    mapped = {Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines()}
    path = next((str(file) for file in mapped if file.name.startswith(("libmpi.so", "libmpich.so"))), "")
    return {"vendor": vendor, "version": ".".join(map(str, version)), "library": path}
