"""Spans of one rank's timeline as arrays: exchanges cut out of computing, first details, then totals."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

START_UP = ("import", "load", "build", "trace")
TRAINING = ("play", "compute", "pack", "send", "receive", "wait", "all-reduce", "unpack", "host")
"""Phases of an epoch's training time, in the order in which totals are drawn."""
PHASES = (*START_UP, *TRAINING, "evaluate", "checkpoint")
COMPUTE, MOVING = PHASES.index("compute"), PHASES.index("all-reduce")

SPAN = np.dtype(
    [
        ("phase", np.uint8),  # index in PHASES
        ("background", np.bool_),  # on a second thread, while the rank computes
        ("epoch", np.int32),  # counted from 1; 0 for the start-up
        ("step", np.int32),  # first step in the span
        ("steps", np.int32),  # number of steps; 0 if the span belongs to none
        ("num_bytes", np.int64),  # sent
        ("start", np.float64),  # seconds
        ("stop", np.float64),
    ]
)

MAX_SPANS = 200_000
"""Detailed spans of all ranks together; a file of about 25 MB."""
DETAILED = 1_000
"""Detailed spans of a rank with which each epoch begins: a hundred steps or more."""
CLOSE_S = 5e-6
"""Shortest time from a graph to the host and back."""


def is_training(spans: np.ndarray) -> np.ndarray:
    """Return True for each span that counts as training time of its epoch."""
    return (spans["epoch"] > 0) & np.isin(spans["phase"], [PHASES.index(name) for name in TRAINING])


def owners_of(exchanges: np.ndarray, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the exchanges that began within training, in order, and the index of the span of each."""
    exchanges = exchanges[np.argsort(exchanges["start"], kind="stable")]
    owners = np.searchsorted(spans["start"], exchanges["start"], side="right") - 1
    inside = (owners >= 0) & is_training(spans)[owners]
    return exchanges[inside], owners[inside]


def cut(spans: np.ndarray, exchanges: np.ndarray) -> np.ndarray:
    """Return ``spans`` with ``exchanges`` cut out of them and inserted, all in order of time.

    The spans are those of the training thread, in order. Exchanges outside training are dropped.
    """
    if not len(spans):
        return spans
    exchanges = exchanges[np.argsort(exchanges["start"], kind="stable")]
    # If TensorFlow ran two at once, the later one counts from the end of the earlier one.
    ends = np.maximum.accumulate(exchanges["stop"])
    exchanges["start"][1:] = np.maximum(exchanges["start"][1:], ends[:-1])
    exchanges["stop"] = np.maximum(exchanges["stop"], exchanges["start"])
    exchanges, owners = owners_of(exchanges, spans)
    whole = exchanges["stop"] <= spans["stop"][owners]
    exchanges, owners = exchanges[whole], owners[whole]
    # A gap between two parts of one exchange is too short to be computing.
    close = (exchanges["start"][1:] - exchanges["stop"][:-1] < CLOSE_S) & (owners[1:] == owners[:-1])
    exchanges["stop"][:-1][close] = exchanges["start"][1:][close]

    # A span with n exchanges becomes n + 1 pieces: each begins at the span's start or at the end of an
    # exchange, and ends at the start of the next exchange or at the span's end. A stable sort by span puts
    # the span's start before the ends of its exchanges, and the starts of its exchanges before its end.
    every = np.arange(len(spans))
    of_start, of_stop = np.concatenate([every, owners]), np.concatenate([owners, every])
    starts, stops = np.argsort(of_start, kind="stable"), np.argsort(of_stop, kind="stable")
    of_piece = of_start[starts]
    pieces = spans[of_piece]
    pieces["start"] = np.concatenate([spans["start"], exchanges["stop"]])[starts]
    pieces["stop"] = np.concatenate([exchanges["start"], spans["stop"]])[stops]

    for name in ("epoch", "step", "steps"):
        exchanges[name] = spans[name][owners]
    # Every step has as many exchanges, so the place of a piece or an exchange in its span says its step.
    per_step, odd = np.divmod(np.bincount(owners, minlength=len(spans)), np.maximum(1, spans["steps"]))
    numbered = (per_step > 0) & (odd == 0) & (spans["steps"] > 0)
    for found, of in ((pieces, of_piece), (exchanges, owners)):
        place = np.arange(len(found)) - np.searchsorted(of, of)
        step = np.minimum(place // np.maximum(1, per_step[of]), found["steps"] - 1)
        found["step"] += np.where(numbered[of], step, 0).astype(np.int32)
        found["steps"] = np.where(numbered[of], 1, found["steps"])
    both = np.concatenate([pieces, exchanges])
    both = both[both["stop"] > both["start"]]
    return both[np.argsort(both["start"], kind="stable")]


def totals(spans: np.ndarray) -> np.ndarray:
    """Replace each stretch of training by one span per phase, laid end to end where the stretch was."""
    training, before, after = is_training(spans), spans[:-1], spans[1:]
    together = (after["start"] == before["stop"]) & (after["epoch"] == before["epoch"])
    breaks = ~(together & training[1:] & training[:-1])
    found = [np.empty(0, SPAN)]
    for stretch in np.split(spans, np.flatnonzero(breaks) + 1):
        seconds = np.bincount(stretch["phase"], stretch["stop"] - stretch["start"], len(PHASES))
        phases = np.flatnonzero(seconds)
        sums = np.repeat(stretch[:1], len(phases))
        sums["phase"] = phases
        sums["num_bytes"] = np.bincount(stretch["phase"], stretch["num_bytes"], len(PHASES))[phases]
        edges = np.concatenate([stretch["start"][:1], stretch["start"][:1] + np.cumsum(seconds[phases])])
        edges[-1:] = stretch["stop"][-1:]
        sums["start"], sums["stop"] = edges[:-1], edges[1:]
        stepped = stretch[stretch["steps"] > 0]
        if len(stepped):
            sums["step"] = stepped["step"][0]
            sums["steps"] = stepped["step"][-1] + stepped["steps"][-1] - stepped["step"][0]
        found.append(sums)
    return np.concatenate(found)


def hidden_s(moving: np.ndarray, spans: np.ndarray) -> float:
    """Return the seconds of ``moving``, spans in the background, in which the training thread computed."""
    computing = spans[spans["phase"] == COMPUTE]
    if not len(computing):
        return 0.0
    lengths = computing["stop"] - computing["start"]
    # The time computed so far grows within these spans, and is constant between them.
    edges = np.stack([computing["start"], computing["stop"]], axis=1).ravel()
    computed = np.repeat(np.cumsum(np.append(0, lengths)), 2)[1:-1]
    by_then = [np.interp(moving[edge], edges, computed) for edge in ("start", "stop")]
    return float(np.sum(by_then[1] - by_then[0]))


class KeptSpans:
    """Spans of one of ``num_ranks`` ranks that are kept: the first of each epoch in detail, then totals.

    Attributes:
        spans: Kept spans, of one epoch after another.
        seconds: Seconds of all spans, kept or not, by epoch and phase.
        background: Seconds of all all-reduces in the background, by epoch: ``moving``, and ``hidden`` ones.
    """

    def __init__(self, num_ranks: int) -> None:
        self._room = MAX_SPANS // num_ranks
        self.spans = [np.empty(0, SPAN)]
        self.seconds: defaultdict[int, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.background: dict[int, dict[str, float]] = {}

    def add(self, spans: np.ndarray, background: np.ndarray) -> None:
        """Add the spans of an epoch, in order of time, and what ran in the background meanwhile."""
        for span in totals(spans):
            self.seconds[int(span["epoch"])][PHASES[span["phase"]]] += float(span["stop"] - span["start"])
        first = self._first(spans)
        self.spans += [first, totals(spans[len(first) :])]
        if not len(spans) or not len(background):
            return
        background, owners = owners_of(background, spans)
        for name in ("epoch", "step", "steps"):
            background[name] = spans[name][owners]
        moving = background[background["phase"] == MOVING]
        for epoch in np.unique(moving["epoch"]):
            some = moving[moving["epoch"] == epoch]
            seconds = {"moving": float(np.sum(some["stop"] - some["start"])), "hidden": hidden_s(some, spans)}
            self.background[int(epoch)] = seconds
        self.spans.append(self._first(background[background["stop"] > background["start"]]))

    def _first(self, spans: np.ndarray) -> np.ndarray:
        first = spans[: min(DETAILED, self._room)]
        self._room -= len(first)
        return first
