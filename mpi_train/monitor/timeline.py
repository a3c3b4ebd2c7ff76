"""Timeline of a run: what each rank did when, for ``--trace``. Without it nothing is recorded.

At any time the training thread is in one phase, and a phase that begins within another interrupts it. The
exchanges of a step are cut out of the computing around them. So a rank's spans never overlap, and those of an
epoch add up to its time. Steps only append times to arrays; the spans of an epoch are made at its end,
outside its time. ``trace_file`` writes them.
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
from mpi_train.monitor.spans import PHASES, SPAN, KeptSpans, cut
from mpi_train.runtime import machine
from mpi_train.runtime.errors import JobError
from mpi_train.runtime.world import World

Function = TypeVar("Function", bound=Callable[..., Any])

# A process has one timeline, which reaches back to its start: before there is a run, a trainer or a
# collective to hand it to. Passing it through all of them would add a parameter to each, for --trace alone.
_current: _Timeline | None = None
_NO_PHASE: AbstractContextManager[None] = nullcontext()


def start(world: World) -> None:
    """Begin a timeline at the start of the process, on all ranks together."""
    global _current
    _current = _Timeline(world)


def phase(name: str, first: int = 0, stop: int = 0) -> AbstractContextManager[None]:
    """Return a context that is a phase of the training thread, of steps ``first`` to ``stop`` if any."""
    return _NO_PHASE if _current is None else _phase(name, first, stop)


@contextmanager
def _phase(name: str, first: int, stop: int) -> Iterator[None]:
    enter(name, first, stop)
    try:
        yield
    finally:
        leave()


def enter(name: str, first: int = 0, stop: int = 0) -> None:
    """Begin a phase without a context; ``leave`` ends it."""
    if _current is not None:
        _current.note()
        _current.open.append((name, first, stop))


def leave() -> None:
    """End the phase that was entered last."""
    if _current is not None:
        _current.note()
        _current.step = _current.open.pop()[2] or _current.step


def lap(name: str) -> None:
    """End a phase of the start-up, which began at the end of the previous one."""
    if _current is not None:
        _current.note()
        _current.noted = [(name, *span[1:]) if span[0] == "" else span for span in _current.noted]


def begin_epoch(epoch: int) -> None:
    """Assign what follows to this epoch."""
    if _current is not None:
        # A phase that is still open is the start-up, or was left by an error.
        _current.open, _current.epoch, _current.step = [], epoch, 0


def end_epoch() -> None:
    """Make the spans of the epoch, outside its time; on all ranks together."""
    if _current is not None:
        _current.settle()


def traced(
    name: str,
    function: Function,
    *,
    together: World | None = None,
    num_bytes: int = 0,
    background: bool = False,
) -> Function:
    """Return ``function`` with its calls on the timeline, or unchanged if there is no timeline.

    Args:
        name: Phase of a call, such as ``all-reduce``.
        function: Function to call.
        together: Ranks whose calls are one exchange, which ends on none before it has begun on all: the time
            until the last rank begins is waiting. None if no other rank takes part.
        num_bytes: Bytes that this rank sends in one call.
        background: True if another thread calls it while the rank computes.
    """
    if _current is None:
        return function
    calls = _Calls(name, together, num_bytes, background)
    _current.calls.append(calls)
    add, clock = calls.times.extend, time.perf_counter

    def timed(*args: Any, **kwargs: Any) -> Any:
        begin = clock()
        result = function(*args, **kwargs)
        add((begin, clock()))
        return result

    return timed  # type: ignore[return-value]


@contextmanager
def kept(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Write the timeline of all ranks when the block ends, also by an error that all of them have."""
    global _current
    failed: JobError | None = None
    try:
        yield
    except JobError as error:
        failed = error
    if _current is not None:
        timeline, _current = _current, None
        timeline.settle()
        trace_file.write(path, timeline.world, timeline.clock, timeline.spans, say)
    if failed is not None:
        raise failed


@dataclass
class _Calls:
    """Start and stop (``times``) of the calls of one traced function; the rest as for ``traced``."""

    phase: str
    together: World | None
    num_bytes: int
    background: bool
    times: array[float] = field(default_factory=lambda: array("d"))

    def take(self, clock: Clock) -> np.ndarray:
        """Return and forget the spans of the calls, on all ranks of ``together``."""
        count = len(self.times)
        if self.together is not None:
            # A call in the background may have ended on some ranks only.
            count = min(self.together.gather_all(count))
        begins, ends = np.array(self.times[:count]).reshape(-1, 2).T
        del self.times[:count]
        # Of each call first the waiting, of no length if no other rank takes part, then the exchange itself.
        waits, spans = np.zeros((2, len(begins)), SPAN)
        waits["background"] = spans["background"] = self.background
        waits["phase"], spans["phase"] = PHASES.index("wait"), PHASES.index(self.phase)
        spans["num_bytes"], spans["stop"] = self.num_bytes, ends
        waits["start"] = last = begins
        if self.together is not None:
            common = clock.common(begins)
            last = np.clip(begins + (self.together.maxima(common) - common), begins, ends)
        waits["stop"] = spans["start"] = last
        return spans if self.together is None else np.concatenate([waits, spans])


class _Timeline:
    """Timeline of this rank, among those of ``world``."""

    def __init__(self, world: World) -> None:
        self.world, self.spans = world, KeptSpans(world.size)
        self.calls: list[_Calls] = []
        self.noted: list[tuple[Any, ...]] = []  # as SPAN, with the name of the phase
        self.epoch = self.step = 0
        # Name and steps of the open phases, innermost last. Those of the start-up are named at their end.
        self.open: list[tuple[str, int, int]] = [("", 0, 0)]
        self._since = time.perf_counter() - machine.process_age_s()
        self.clock = Clock(world)

    def note(self) -> None:
        """End the span of the innermost phase here, where another begins."""
        now = time.perf_counter()
        if self.open:
            name, first, stop = self.open[-1]
            step, steps = (first, stop - first) if stop else (self.step, 0)
            self.noted.append((name, False, self.epoch, step, steps, 0, self._since, now))
        self._since = now

    def settle(self) -> None:
        """Make spans of what was noted since this was last called, on all ranks together."""
        self.clock.read()
        exchanges = np.concatenate([np.empty(0, SPAN), *(calls.take(self.clock) for calls in self.calls)])
        noted = [(PHASES.index(name), *span) for name, *span in self.noted if name in PHASES]
        self.noted = []
        background = exchanges["background"]
        self.spans.add(cut(np.array(noted, SPAN), exchanges[~background]), exchanges[background])
