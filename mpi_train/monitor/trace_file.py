"""Writer of ``trace.json``: the spans of all ranks in Chrome's trace-event format, for ui.perfetto.dev.

The format is described in "Trace Event Format" by Duca and Sinclair, which docs.google.com has as document
1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. A rank is a process, and all use the root's clock.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mpi_train.monitor.clock import Clock
from mpi_train.monitor.spans import PHASES, SPAN, KeptSpans, is_training
from mpi_train.runtime import files
from mpi_train.runtime.world import World

Event = dict[str, Any]


def write(path: Path, world: World, clock: Clock, kept: KeptSpans, say: Callable[[str], None]) -> None:
    """Write the spans of all ranks to ``path``, on all of them together, and ``say`` so to the user."""
    spans = np.concatenate(kept.spans)
    for edge in ("start", "stop"):
        spans[edge] = clock.common(spans[edge])
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
        "seconds": {f"epoch {epoch}": phases for epoch, phases in kept.seconds.items() if epoch},
        "start_up": dict(kept.seconds[0]),
        "beside": {f"epoch {epoch}": seconds for epoch, seconds in kept.background.items()},
    }
    everyone = world.gather_all((json.dumps(about), len(spans)))
    if not world.is_root:
        world.send(spans.view(np.uint8), to=0)
        return
    # The root receives everything before it writes, so that no rank waits for a disk.
    by_rank = [spans] + [
        world.receive(np.empty(count * SPAN.itemsize, np.uint8), source=rank).view(SPAN)
        for rank, (_, count) in enumerate(everyone[1:], start=1)
    ]
    try:
        _write(path, by_rank, [json.loads(text) for text, _ in everyone])
    except OSError as error:
        # A full disk is no reason to lose the training.
        print(f"warning: {path}: {error.strerror}; the timeline is lost", file=sys.stderr)
    else:
        say(f"timeline: {path}, for https://ui.perfetto.dev")


def _write(path: Path, by_rank: list[np.ndarray], about: list[dict[str, Any]]) -> None:
    zero = min(spans["start"].min() for spans in by_rank if len(spans))
    began = time.time() - (time.perf_counter() - zero)
    other = {"began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)), "ranks": about}
    events: list[str] = []
    for rank, spans in enumerate(by_rank):
        name = f"rank {rank} on {about[rank]['host']}"
        events += map(json.dumps, _events(spans, zero, name, rank, len(by_rank)))
    head = '{"displayTimeUnit": "ms",\n"otherData": ' + json.dumps(other) + ',\n"traceEvents": [\n'
    files.write_text(path, head + ",\n".join(events) + "\n]}\n")


def _events(spans: np.ndarray, zero: float, name: str, rank: int, size: int) -> Iterator[Event]:
    """Yield the events of one rank: its phases on one thread, its epochs and its background on others."""
    # A process has the number of its first thread, and 0 is the kernel's.
    pid = rank + 1
    threads = {"phases": pid, "epochs": size + pid, "exchange": 2 * size + pid}
    for kind, value in (("name", name), ("sort_index", pid)):
        yield {"ph": "M", "name": f"process_{kind}", "pid": pid, "args": {kind: value}}
    for thread, tid in threads.items():
        if thread != "exchange" or spans["background"].any():
            yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": thread}}
    # Whole nanoseconds, so that a span begins exactly where the previous one ends.
    starts, stops = (np.rint(1e9 * (spans[edge] - zero)).astype(int) for edge in ("start", "stop"))

    def complete(name: str, thread: str, start: int, stop: int, args: dict[str, Any]) -> Event:
        times = {"ts": int(start) / 1000, "dur": int(stop - start) / 1000}
        return {"ph": "X", "name": name, "pid": pid, "tid": threads[thread], **times, "args": args}

    training = is_training(spans) & ~spans["background"]
    for epoch in np.unique(spans["epoch"][training]):
        some = training & (spans["epoch"] == epoch)
        yield complete(f"epoch {epoch}", "epochs", starts[some].min(), stops[some].max(), {})
    for span, start, stop in zip(spans, starts, stops, strict=True):
        args: dict[str, Any] = {"epoch": int(span["epoch"])}
        if span["steps"] == 1:
            args["step"] = int(span["step"]) + 1
        elif span["steps"]:
            args["steps"] = f"{span['step'] + 1} to {span['step'] + span['steps']}"
        args["bytes"] = int(span["num_bytes"])
        thread, known = "exchange" if span["background"] else "phases", {k: v for k, v in args.items() if v}
        yield complete(PHASES[span["phase"]], thread, start, stop, known)
