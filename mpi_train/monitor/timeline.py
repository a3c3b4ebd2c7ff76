"""The timeline of a run: what each rank did when, for ``--trace``. Without it nothing here does anything.

At any time the training thread is in one phase, and phases that begin within others interrupt them; what the
exchanges of a step take is cut out of the computing around them. So a rank's spans never overlap, and those
of an epoch add up to its time. Steps only append times to arrays; an epoch's spans are made at its
end, outside its time. ``trace_file`` writes them.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mpi_train.monitor import trace_file
from mpi_train.monitor.clock import Clock
from mpi_train.monitor.spans import PHASES, SPAN, Beside, Bounded, without
from mpi_train.runtime import machine
from mpi_train.runtime.errors import JobError
from mpi_train.runtime.world import World

Function = TypeVar("Function", bound=Callable[..., Any])

_current: Timeline | None = None
_NOTHING: AbstractContextManager[None] = nullcontext()


def start(world: World) -> None:
    """Begins a timeline, on all ranks together; it reaches back to the start of the process."""
    global _current
    _current = Timeline(world)


def phase(name: str, first: int = 0, stop: int = 0) -> AbstractContextManager[None]:
    """In which the training thread is within the block; of steps ``first`` to ``stop``, where it has some."""
    return _NOTHING if _current is None else _current.phase(name, first, stop)


def enter(name: str) -> None:
    """As ``phase``, where there is no block; ended by ``leave``."""
    if _current is not None:
        _current.enter(name)


def leave() -> None:
    """Ends the phase that was entered last."""
    if _current is not None:
        _current.leave()


def lap(name: str) -> None:
    """Ends a phase of the start-up, which began where the last one ended."""
    if _current is not None:
        _current.lap(name)


def begin_epoch(epoch: int) -> None:
    """What comes is of this epoch."""
    if _current is not None:
        _current.begin_epoch(epoch)


def end_epoch() -> None:
    """Makes the spans of what was; on all ranks together, and in nobody's time."""
    if _current is not None:
        _current.settle()


def traced(name: str, function: Function, *, together: World | None = None, num_bytes: int = 0) -> Function:
    """``function``, which a step calls, with its calls on the timeline; itself where there is none.

    Args:
        name: The phase that a call is.
        function: Called from inside graphs.
        together: The ranks whose calls are one exchange, of which none ends before all have begun: the time
            until the last one begins is spent waiting.
        num_bytes: What a call sends.
    """
    return function if _current is None else _current.traced(name, function, together, num_bytes)


def beside(function: Function, *, together: World, num_bytes: int) -> Function:
    """``function``, which another thread calls while the rank computes, with its calls on a second track.

    Arguments as for ``traced``; it is an all-reduce.
    """
    return function if _current is None else _current.beside(function, together, num_bytes)


@contextmanager
def kept(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Writes the timeline of all ranks when the block ends, also by an error that all of them have."""
    try:
        yield
    except JobError:
        _write(path, say)
        raise
    _write(path, say)


def _write(path: Path, say: Callable[[str], None]) -> None:
    global _current
    if _current is not None:
        timeline, _current = _current, None
        timeline.settle()
        trace_file.write(path, timeline.world, timeline.clock, timeline.spans, timeline.exchanges, say)


@dataclass
class _Calls:
    """Of one traced function: when they began and ended, in turn."""

    phase: str
    together: World | None
    num_bytes: int
    times: array[float] = field(default_factory=lambda: array("d"))


class Timeline:
    """What this rank did.

    Args:
        world: The ranks.

    Attributes:
        clock: The rank's, against the root's.
        spans: Those of the epochs that are over.
        exchanges: What ran beside them.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.spans, self.exchanges = Bounded(world.size), Beside(world.size)
        self._calls: list[_Calls] = []
        self._beside: list[_Calls] = []
        self._flat: list[tuple[Any, ...]] = []  # as SPAN has them
        self._epoch = self._step = self._chunk = 0
        # Of the phases that are open, innermost last: name and steps. The start-up's are named at their end.
        self._open: list[tuple[str, int, int]] = [("", 0, 0)]
        self._since = time.perf_counter() - machine.process_age_s()
        self.clock = Clock(world)

    # ---- On the training thread -------------------------------------------------------------------------

    @contextmanager
    def phase(self, name: str, first: int = 0, stop: int = 0) -> Iterator[None]:
        self.enter(name, first, stop)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str, first: int = 0, stop: int = 0) -> None:
        self._cut()
        self._open.append((name, first, stop))
        self._chunk += name == "compute"

    def leave(self) -> None:
        self._cut()
        _, _, stop = self._open.pop()
        self._step = stop or self._step

    def lap(self, name: str) -> None:
        self._cut()
        self._flat = [(name, *span[1:]) if span[0] == "" else span for span in self._flat]

    def begin_epoch(self, epoch: int) -> None:
        # What is still open is the start-up, or was left by an error.
        self._open = []
        self._epoch, self._step = epoch, 0

    def _cut(self) -> None:
        """Ends the span of the innermost phase here, where another begins."""
        now = time.perf_counter()
        if self._open:
            name, first, stop = self._open[-1]
            step, steps = (first, stop - first) if stop else (self._step, 0)
            self._flat.append((name, self._epoch, self._chunk, step, steps, 0, self._since, now))
        self._since = now

    # ---- On TensorFlow's thread -------------------------------------------------------------------------

    def traced(self, name: str, function: Function, together: World | None, num_bytes: int) -> Function:
        calls = _Calls(name, together, num_bytes)
        self._calls.append(calls)
        return self._timed(function, calls)

    def beside(self, function: Function, together: World, num_bytes: int) -> Function:
        calls = _Calls("all-reduce", together, num_bytes)
        self._beside.append(calls)
        return self._timed(function, calls)

    @staticmethod
    def _timed(function: Function, calls: _Calls) -> Function:
        add, clock = calls.times.extend, time.perf_counter

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = clock()
            result = function(*args, **kwargs)
            add((begin, clock()))
            return result

        return timed  # type: ignore[return-value]

    # ---- At the end of an epoch -------------------------------------------------------------------------

    def settle(self) -> None:
        """Makes spans of what was noted since this was last called; on all ranks together."""
        self.clock.read()
        exchanges = np.concatenate([np.empty(0, SPAN), *map(self._exchanges, self._calls)])
        noted = [(PHASES.index(name), *span) for name, *span in self._flat if name in PHASES]
        self._flat = []
        spans = without(np.array(noted, SPAN), exchanges)
        self.spans.add(spans)
        if self._beside:
            self.exchanges.add(np.concatenate([*map(self._exchanges, self._beside)]), spans)

    def _exchanges(self, calls: _Calls) -> np.ndarray:
        count = len(calls.times)
        if calls.together is not None:
            # One that runs beside the training may be at its end on some ranks only.
            count = min(calls.together.gather_all(count))
        begins, ends = np.array(calls.times[:count]).reshape(-1, 2).T
        del calls.times[:count]
        if calls.together is None:
            return _spans(calls.phase, begins, ends, calls.num_bytes)
        begins_there = self.clock.common(begins)
        last = begins + (calls.together.maxima(begins_there) - begins_there)
        last = np.clip(last, begins, ends)
        waits = _spans("wait", begins, last, 0)
        return np.concatenate([waits, _spans(calls.phase, last, ends, calls.num_bytes)])


def _spans(phase: str, starts: np.ndarray, stops: np.ndarray, num_bytes: int) -> np.ndarray:
    spans = np.zeros(len(starts), SPAN)
    spans["phase"], spans["num_bytes"] = PHASES.index(phase), num_bytes
    spans["start"], spans["stop"] = starts, stops
    return spans
