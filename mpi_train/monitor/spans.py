"""The spans of one rank's timeline, as arrays: exchanges cut out of computing, and no more than can be kept.

What is too many in detail is added up: the spans of a chunk of steps become one for each phase, laid end to
end where the chunk was. So whatever is kept adds up to the same seconds.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

START_UP = ("import", "load", "build", "trace")
TRAINING = ("play", "compute", "pack", "send", "receive", "wait", "all-reduce", "unpack", "host")
"""What an epoch's time is spent on; in this order where it is added up."""
PHASES = (*START_UP, *TRAINING, "evaluate", "checkpoint")

SPAN = np.dtype(
    [
        ("phase", np.uint8),  # number in PHASES
        ("epoch", np.int32),  # counted from 1; 0 for the start-up
        ("chunk", np.int32),
        ("step", np.int32),  # the first one in it
        ("steps", np.int32),  # how many; 0 for what is not of steps
        ("num_bytes", np.int64),  # sent
        ("start", np.float64),  # seconds
        ("stop", np.float64),
    ]
)

MAX_SPANS = 200_000
"""Kept of all ranks together; a file of some 25 MB."""
FEWEST = 1_000
"""Kept of a rank, however many there are."""
CLOSE_S = 5e-6
"""What a way out of a graph and back takes at the least."""
DETAILED = 1_000
"""Spans that each epoch begins with, as they were: a hundred steps or more. The rest is added up."""


def without(spans: np.ndarray, exchanges: np.ndarray) -> np.ndarray:
    """``spans`` with ``exchanges`` cut out of them, and these among them: one rank's, in order of time.

    Args:
        spans: Of the training thread, in order, none overlapping another.
        exchanges: Of which only phase, bytes and times are known. Those outside of training are dropped.
    """
    if not len(spans):
        return spans
    exchanges = exchanges[np.argsort(exchanges["start"], kind="stable")]
    # Two that TensorFlow ran at once: the later one counts from where the earlier one ended.
    ends = np.maximum.accumulate(exchanges["stop"])
    exchanges["start"][1:] = np.maximum(exchanges["start"][1:], ends[:-1])
    exchanges["stop"] = np.maximum(exchanges["stop"], exchanges["start"])
    owners = np.searchsorted(spans["start"], exchanges["start"], side="right") - 1
    inside = (owners >= 0) & is_training(spans)[owners] & (exchanges["stop"] <= spans["stop"][owners])
    exchanges, owners = exchanges[inside], owners[inside]
    # What lies between the parts of one exchange is no computing.
    close = (exchanges["start"][1:] - exchanges["stop"][:-1] < CLOSE_S) & (owners[1:] == owners[:-1])
    exchanges["stop"][:-1][close] = exchanges["start"][1:][close]

    # What is left of a span: from its start or the end of an exchange to the next exchange or its end.
    everyone = np.arange(len(spans))
    of_piece = np.sort(np.concatenate([everyone, owners]), kind="stable")
    pieces = spans[of_piece]
    starts = np.concatenate([spans["start"], exchanges["stop"]])
    stops = np.concatenate([exchanges["start"], spans["stop"]])
    pieces["start"] = starts[np.argsort(np.concatenate([everyone, owners]), kind="stable")]
    pieces["stop"] = stops[np.argsort(np.concatenate([owners, everyone]), kind="stable")]

    for name in ("epoch", "chunk", "step", "steps"):
        exchanges[name] = spans[name][owners]
    _number_steps(pieces, of_piece, spans, owners)
    _number_steps(exchanges, owners, spans, owners)
    both = np.concatenate([pieces, exchanges])
    both = both[both["stop"] > both["start"]]
    return _joined(both[np.argsort(both["start"], kind="stable")])


def _joined(spans: np.ndarray) -> np.ndarray:
    """``spans``, with those made one that follow each other without a gap in the same phase of one step."""
    same = spans["start"][1:] == spans["stop"][:-1]
    for name in ("phase", "epoch", "chunk", "step", "steps"):
        same &= spans[name][1:] == spans[name][:-1]
    begins = np.flatnonzero(np.concatenate([[True], ~same]))[: len(spans)]
    joined = spans[begins]
    if len(spans):
        joined["stop"] = np.maximum.reduceat(spans["stop"], begins)
        joined["num_bytes"] = np.add.reduceat(spans["num_bytes"], begins)
    return joined


def _number_steps(parts: np.ndarray, of_part: np.ndarray, spans: np.ndarray, owners: np.ndarray) -> None:
    """Says of which step each of ``parts`` is, in spans of which every step has as many exchanges."""
    per_step, odd = np.divmod(np.bincount(owners, minlength=len(spans)), np.maximum(1, spans["steps"]))
    known = ((per_step > 0) & (odd == 0) & (spans["steps"] > 0))[of_part]
    place = np.arange(len(parts)) - np.searchsorted(of_part, of_part)
    step = place // np.maximum(1, per_step[of_part])
    last = parts["steps"] - 1
    parts["step"] += np.where(known, np.minimum(step, last), 0).astype(np.int32)
    parts["steps"] = np.where(known, 1, parts["steps"])


def is_training(spans: np.ndarray) -> np.ndarray:
    """Of which spans the time is their epoch's."""
    return (spans["epoch"] > 0) & np.isin(spans["phase"], [PHASES.index(name) for name in TRAINING])


def summed(spans: np.ndarray, *, by_chunk: bool) -> np.ndarray:
    """One span a phase for each chunk of steps, or for each stretch of training; others stay as they are."""
    if not len(spans):
        return spans
    training = is_training(spans)
    new = (
        (spans["start"][1:] != spans["stop"][:-1])
        | (spans["epoch"][1:] != spans["epoch"][:-1])
        | ~(training[1:] & training[:-1])
    )
    if by_chunk:
        new |= spans["chunk"][1:] != spans["chunk"][:-1]
    begins = np.flatnonzero(np.concatenate([[True], new]))
    group = np.cumsum(np.concatenate([[0], new]))
    seconds, num_bytes = np.zeros((2, len(begins), len(PHASES)))
    np.add.at(seconds, (group, spans["phase"]), spans["stop"] - spans["start"])
    np.add.at(num_bytes, (group, spans["phase"]), spans["num_bytes"])
    stops = spans["start"][begins, np.newaxis] + np.cumsum(seconds, axis=1)
    where, phase = np.nonzero(seconds)
    sums = spans[begins][where]
    sums["phase"], sums["num_bytes"] = phase, num_bytes[where, phase]
    sums["start"], sums["stop"] = (stops - seconds)[where, phase], stops[where, phase]
    some = spans["steps"] > 0
    first = np.minimum.reduceat(np.where(some, spans["step"], np.iinfo(np.int32).max), begins)
    last = np.maximum.reduceat(np.where(some, spans["step"] + spans["steps"], 0), begins)
    sums["step"], sums["steps"] = np.where(last, first, 0)[where], np.where(last, last - first, 0)[where]
    return sums


def hidden_s(moving: np.ndarray, spans: np.ndarray) -> float:
    """For how many of the seconds of ``moving`` the training thread computed.

    Args:
        moving: Spans that ran beside it.
        spans: Its own, in order of time.
    """
    computing = spans[spans["phase"] == PHASES.index("compute")]
    if not len(computing):
        return 0.0
    # What had been computed by then grows within these spans, and between them it does not.
    edges = np.stack([computing["start"], computing["stop"]], axis=1).ravel()
    lengths = computing["stop"] - computing["start"]
    computed = np.stack([np.cumsum(lengths) - lengths, np.cumsum(lengths)], axis=1).ravel()
    by_then = [np.interp(moving[edge], edges, computed) for edge in ("start", "stop")]
    return float(np.sum(by_then[1] - by_then[0]))


class Beside:
    """What ran on a second thread of one rank while the first one trained: no part of an epoch's time.

    Args:
        num_ranks: Among which the room is divided.

    Attributes:
        seconds: By epoch, of all all-reduces, kept or not: ``moving``, and how much of it was ``hidden``.
    """

    def __init__(self, num_ranks: int) -> None:
        self._room = max(FEWEST, MAX_SPANS // num_ranks) // 4
        self._kept: list[np.ndarray] = []
        self.seconds: dict[int, dict[str, float]] = {}

    def add(self, exchanges: np.ndarray, spans: np.ndarray) -> None:
        """Keeps what it can of ``exchanges``, of which only phase, bytes and times are known.

        Args:
            exchanges: Of the second thread.
            spans: Of the first one, in order of time.
        """
        if not len(spans):
            return
        exchanges = exchanges[np.argsort(exchanges["start"], kind="stable")]
        owners = np.searchsorted(spans["start"], exchanges["start"], side="right") - 1
        inside = (owners >= 0) & is_training(spans)[owners]
        exchanges, owners = exchanges[inside], owners[inside]
        for name in ("epoch", "chunk", "step", "steps"):
            exchanges[name] = spans[name][owners]
        moving = exchanges[exchanges["phase"] == PHASES.index("all-reduce")]
        for epoch in np.unique(moving["epoch"]):
            some = moving[moving["epoch"] == epoch]
            seconds = {"moving": float(np.sum(some["stop"] - some["start"])), "hidden": hidden_s(some, spans)}
            self.seconds[int(epoch)] = seconds
        kept = exchanges[exchanges["stop"] > exchanges["start"]][: min(DETAILED, self._room)]
        self._room -= len(kept)
        self._kept.append(kept)

    def all(self) -> np.ndarray:
        """Those that are kept, in order of time."""
        return np.concatenate([np.empty(0, SPAN), *self._kept])


class Bounded:
    """The spans of one rank that are kept, each stretch in as much detail as there is room for.

    Args:
        num_ranks: Among which the room is divided.

    Attributes:
        seconds: By epoch and phase, of all spans, kept or not.
        num_left_out: Sums that were not kept.
    """

    def __init__(self, num_ranks: int) -> None:
        room = max(FEWEST, MAX_SPANS // num_ranks)
        self._detailed, self._limits = min(DETAILED, room // 4), (room // 2, 3 * room // 4, room)
        self._kept: list[np.ndarray] = []
        self._num_kept = 0
        self.seconds: defaultdict[int, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.num_left_out = 0

    def add(self, spans: np.ndarray) -> None:
        """Keeps what it can of ``spans``, which are in order of time."""
        first, rest = spans[: self._detailed], spans[self._detailed :]
        chunks, stretches = summed(spans, by_chunk=True), summed(spans, by_chunk=False)
        for span in stretches:
            self.seconds[int(span["epoch"])][PHASES[span["phase"]]] += float(span["stop"] - span["start"])
        choices = (np.concatenate([first, summed(rest, by_chunk=True)]), chunks, stretches)
        for kept, limit in zip(choices, self._limits, strict=True):
            if self._num_kept + len(kept) <= limit:
                self._kept.append(kept)
                self._num_kept += len(kept)
                return
        self.num_left_out += len(stretches)

    def all(self) -> np.ndarray:
        """Those that are kept, in order of time."""
        return np.concatenate([np.empty(0, SPAN), *self._kept])
