"""How far a long piece of work has come: a bar on a terminal, plain lines in a log.

Everything goes to stderr, so that a script's stdout stays something another script can read.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# A log is read afterwards: a line every few seconds is enough.
_LINE_EVERY_S = 2.0


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows ``what`` as being under way; the function it gives is called with each amount done.

    Args:
        what: A few words, such as ``writing shards``.
        total: Amount of the whole, in whatever unit (bytes, images).
    """
    show = _bar if sys.stderr.isatty() else _lines
    with show(what, total) as advance:
        yield advance


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount: bar.advance(task, amount)


@contextmanager
def _lines(what: str, total: int) -> Iterator[Callable[[int], None]]:
    start_s = said_s = time.monotonic()
    done = 0

    def advance(amount: int) -> None:
        nonlocal done, said_s
        done += amount
        if time.monotonic() - said_s >= _LINE_EVERY_S:
            said_s = time.monotonic()
            print(f"{what}: {done / max(total, 1):.0%}", file=sys.stderr, flush=True)

    yield advance
    # What was over at once needs no line.
    if (took_s := time.monotonic() - start_s) >= 1.0:
        print(f"{what}: done in {took_s:.1f} s", file=sys.stderr, flush=True)
