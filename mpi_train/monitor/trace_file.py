"""``trace.json``: the spans of all ranks in Chrome's trace-event format, which ui.perfetto.dev opens.

The format is described in "Trace Event Format" by Duca and Sinclair, which docs.google.com has as document
1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. A rank is a process, and all stand on the root's clock.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mpi_train.monitor.clock import Clock
from mpi_train.monitor.spans import PHASES, SPAN, Beside, Bounded, is_training
from mpi_train.runtime import files
from mpi_train.runtime.world import World


def write(
    path: Path, world: World, clock: Clock, spans: Bounded, beside: Beside, say: Callable[[str], None]
) -> None:
    """Writes the spans of all ranks, on all of them together.

    Args:
        path: The file; written by the root.
        world: The ranks.
        clock: Of this rank.
        spans: Of this rank, by its own clock.
        beside: What ran at the same time.
        say: Shows a line to the user.
    """
    tracks = spans.all(), beside.all()
    mine = np.concatenate(tracks)
    for edge in ("start", "stop"):
        mine[edge] = clock.common(mine[edge])
    good = clock.good
    about = {
        "rank": world.rank,
        "host": world.hosts[world.rank],
        "clock": {
            "offset_us": 1e6 * good[0].offset_s,
            "drift_us": 1e6 * (good[-1].offset_s - good[0].offset_s),
            "uncertainty_us": 1e6 * max(reading.uncertainty_s for reading in good),
            "readings": len(good),
        },
        "seconds": {f"epoch {epoch}": dict(phases) for epoch, phases in spans.seconds.items() if epoch},
        "start_up": dict(spans.seconds[0]),
        "left_out": spans.num_left_out,
    }
    if beside.seconds:
        about["beside"] = {f"epoch {epoch}": seconds for epoch, seconds in beside.seconds.items()}
    everyone = world.gather_all((about, [len(track) for track in tracks]))
    if not world.is_root:
        world.send(mine.view(np.uint8), to=0)
        return
    # All of them first: the others do not wait for a disk.
    theirs = [
        world.receive(np.empty(sum(counts) * SPAN.itemsize, np.uint8), source=rank).view(SPAN)
        for rank, (_, counts) in enumerate(everyone[1:], start=1)
    ]
    by_rank = [
        (both[:count], both[count:]) for both, (_, (count, _)) in zip([mine, *theirs], everyone, strict=True)
    ]
    try:
        _write(path, by_rank, [about for about, _ in everyone])
    except OSError as error:
        # A full disk is no reason to lose the training.
        print(f"warning: {path}: {error.strerror}; the timeline is lost", file=sys.stderr)
    else:
        say(f"timeline: {path}, for https://ui.perfetto.dev")


def _write(path: Path, by_rank: list[tuple[np.ndarray, np.ndarray]], about: list[dict[str, Any]]) -> None:
    zero = min(spans["start"].min() for spans, _ in by_rank if len(spans))
    began = time.time() - (time.perf_counter() - zero)
    other = {"began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)), "ranks": about}
    with files.replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms",\n"otherData": ' + json.dumps(other) + ',\n"traceEvents": [\n')
        for rank, (spans, beside) in enumerate(by_rank):
            # A process is known by the number of its first thread; 0 is the kernel's.
            pid, size = rank + 1, len(by_rank)
            events = chain(
                _events(spans, zero, pid=pid, epochs_tid=size + pid),
                _exchanges(beside, zero, pid=pid, tid=2 * size + pid),
            )
            name = f"rank {rank} on {about[rank]['host']}"
            file.write(_metadata("process_name", rank + 1, {"name": name}))
            file.writelines(f",\n{event}" for event in events)
            file.write(",\n" if rank + 1 < len(by_rank) else "\n")
        file.write("]}\n")


def _events(spans: np.ndarray, zero: float, *, pid: int, epochs_tid: int) -> Iterator[str]:
    """The events of one rank, as JSON: its phases on one thread, and above them its epochs on another."""
    yield _metadata("process_sort_index", pid, {"sort_index": pid})
    yield _metadata("thread_name", pid, {"name": "phases"}, pid)
    yield _metadata("thread_name", pid, {"name": "epochs"}, epochs_tid)
    training = is_training(spans)
    starts, stops = _whole_ns(spans, zero)
    for epoch in np.unique(spans["epoch"][training]):
        some = training & (spans["epoch"] == epoch)
        yield _complete(f"epoch {epoch}", pid, epochs_tid, starts[some].min(), stops[some].max(), {})
    yield from _drawn(spans, zero, pid=pid, tid=pid)


def _exchanges(spans: np.ndarray, zero: float, *, pid: int, tid: int) -> Iterator[str]:
    """What ran beside the phases of a rank, on a thread of its own; nothing where there was nothing."""
    if len(spans):
        yield _metadata("thread_name", pid, {"name": "exchange"}, tid)
    yield from _drawn(spans, zero, pid=pid, tid=tid)


def _whole_ns(spans: np.ndarray, zero: float) -> tuple[np.ndarray, np.ndarray]:
    """When they start and stop: whole nanoseconds, so that a span begins where the one before ends."""
    starts, stops = (np.rint(1e9 * (spans[edge] - zero)).astype(int) for edge in ("start", "stop"))
    return starts, stops


def _drawn(spans: np.ndarray, zero: float, *, pid: int, tid: int) -> Iterator[str]:
    starts, stops = _whole_ns(spans, zero)
    for span, start, stop in zip(spans, starts, stops, strict=True):
        args: dict[str, Any] = {}
        if span["epoch"]:
            args["epoch"] = int(span["epoch"])
        if span["steps"] == 1:
            args["step"] = int(span["step"]) + 1
        elif span["steps"]:
            args["steps"] = f"{span['step'] + 1} to {span['step'] + span['steps']}"
        if span["num_bytes"]:
            args["bytes"] = int(span["num_bytes"])
        yield _complete(PHASES[span["phase"]], pid, tid, start, stop, args)


def _complete(name: str, pid: int, tid: int, start_ns: int, stop_ns: int, args: dict[str, Any]) -> str:
    return (
        f'{{"ph": "X", "name": "{name}", "pid": {pid}, "tid": {tid}, "ts": {_us(start_ns)}, '
        f'"dur": {_us(stop_ns - start_ns)}, "args": {json.dumps(args)}}}'
    )


def _us(ns: int) -> str:
    return f"{ns // 1000}.{ns % 1000:03}"


def _metadata(name: str, pid: int, args: dict[str, Any], tid: int | None = None) -> str:
    thread = {} if tid is None else {"tid": tid}
    return json.dumps({"ph": "M", "name": name, "pid": pid, **thread, "args": args})
