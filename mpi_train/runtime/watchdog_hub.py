"""Watchdog hub: the process that all ranks report to, and that names a lost one.

The hub is a process of its own, started by rank 0 in a session of its own: when one rank dies, mpiexec kills
all others at once, and a thread among them may not get to print. The hub imports neither TensorFlow nor
NumPy, so it starts at once and costs nothing.
"""

from __future__ import annotations

import hmac
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

BEAT_S = 1.0
ENDING_S = 8.0
"""Seconds that a rank has to end after the hub asked for it."""
STARTING_FACTOR = 5
"""Imports and tracing may block a rank for this many times longer than training may."""
START_S = 60.0
"""Seconds that the ranks have to connect."""


@dataclass
class Rank:
    """State of a rank as reported to the hub."""

    link: socket.socket
    number: int = -1  # before the rank has named itself
    pid: int = 0
    heard: float = field(default_factory=time.monotonic)
    still_since: float = field(default_factory=time.monotonic)  # when the training was last seen to advance
    doing: str = "start-up"
    starting: bool = True  # it may be silent for longer
    calls: int = 0  # all-reduces that the training has entered
    inside: bool = False  # an all-reduce
    left: bool = False  # it said goodbye; its process may take a while to end, without a word
    buffer: bytes = b""  # start of an incomplete message


class Hub:
    """Failure detector: one connection to each rank, which must send the ``token`` first.

    A rank that is silent for ``timeout_s`` is lost.
    """

    def __init__(self, token: str, hosts: list[str], timeout_s: float) -> None:
        self._token, self._hosts, self._timeout_s = token, hosts, timeout_s
        self._server = socket.create_server(("", 0), backlog=len(hosts))
        self.port = int(self._server.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._ranks: dict[int, Rank] = {}
        self._began = time.monotonic()
        self._ending: float | None = None

    def run(self) -> None:
        """Watch the ranks until all have left or one is lost."""
        beat = looked = self._began
        while self._ranks or time.monotonic() - self._began < START_S:
            # Events come in the order in which they happened: the rank that died first, then those that
            # mpiexec killed for it.
            for key, _ in self._selector.select(timeout=BEAT_S / 4):
                if key.fileobj is self._server:
                    self._accept()
                elif self._receive(key.data):
                    return
            now = time.monotonic()
            if now - looked > 5 * BEAT_S:
                # This process was suspended, and the ranks may have been suspended with it.
                for rank in self._ranks.values():
                    rank.heard = rank.still_since = now
            looked = now
            if now - beat >= BEAT_S:
                beat = now
                self._broadcast({})
            if self._is_overdue(now):
                return

    def _accept(self) -> None:
        link, _ = self._server.accept()
        link.setblocking(False)
        self._selector.register(link, selectors.EVENT_READ, Rank(link))

    def _drop(self, rank: Rank) -> None:
        self._selector.unregister(rank.link)
        rank.link.close()

    def _read(self, rank: Rank) -> bytes | None:
        """Return what a rank has sent, if anything; if its connection has closed, drop it and return b""."""
        try:
            received = rank.link.recv(65536)
        except BlockingIOError:
            return None
        except OSError:
            received = b""
        if not received:
            self._drop(rank)
        return received

    def _receive(self, rank: Rank) -> bool:
        """Read from a rank; return True if the watch is over."""
        received = self._read(rank)
        if received is None:
            return False
        if not received:
            if self._ranks.get(rank.number) is not rank:
                return False
            del self._ranks[rank.number]
            if self._ending is None:
                return self._lose(rank, "was lost: its process exited unexpectedly")
            return not self._ranks
        rank.heard = time.monotonic()
        *lines, rank.buffer = (rank.buffer + received).split(b"\n")
        try:
            return any(self._take(rank, json.loads(line)) for line in lines)
        except (ValueError, KeyError, TypeError, AttributeError):  # a stranger, such as a port scanner
            self._drop(rank)
            return False

    def _take(self, rank: Rank, message: dict[str, Any]) -> bool:
        if rank.number < 0:
            self._register(rank, message)
            return False
        if message.get("aborting"):  # that rank has printed the reason, and ends all others
            self._broadcast({"over": True})
            return True
        if message.get("left"):
            rank.left = True
            self._ending = self._ending or time.monotonic()
        if "doing" in message:
            rank.doing, rank.starting = message["doing"], message["starting"]
            if (rank.calls, rank.inside) != (message["calls"], message["inside"]):
                rank.calls, rank.inside = message["calls"], message["inside"]
                rank.still_since = rank.heard
        return False

    def _register(self, rank: Rank, message: dict[str, Any]) -> None:
        if not hmac.compare_digest(str(message["token"]), self._token):
            raise ValueError("wrong token")
        # A rank that gave up waiting for the answer connects again and replaces its first connection.
        rank.number, rank.pid = int(message["rank"]), int(message["pid"])
        self._ranks[rank.number] = rank
        rank.link.sendall(b"{}\n")

    def _is_overdue(self, now: float) -> bool:
        """Look for ranks that are silent or hang; return True if one was found."""
        ranks = list(self._ranks.values())
        patience_s = self._timeout_s * (STARTING_FACTOR if any(rank.starting for rank in ranks) else 1)
        for rank in ranks:
            if now - rank.heard > patience_s and not rank.left:
                return self._lose(rank, f"has not been heard of for {patience_s:g} s")
        if self._ending is not None and now - self._ending > START_S and ranks:
            return self._lose(ranks[0], f"is still there {START_S:g} s after others have ended")
        # Later than silence is noticed: a stopped rank does not enter the all-reduce either.
        waited_s = patience_s + 3 * BEAT_S
        missing = [rank for rank in ranks if not rank.inside]
        if missing and len(missing) < len(ranks) and all(now - rank.still_since > waited_s for rank in ranks):
            return self._lose(missing[0], f"hangs: the others have waited {waited_s:g} s for it in a step")
        return False

    def _lose(self, rank: Rank, how: str) -> bool:
        """Print which rank is lost and end all others."""
        os.write(2, lost_message(rank.number, self._hosts, f"{how} (last known: {rank.doing})"))
        self._broadcast({"end": True})
        self._kill_unresponsive()
        return True

    def _kill_unresponsive(self) -> None:
        """Kill the ranks of this host that do not end: stopped ones, and ones that wait inside a library.

        Rank 0 runs on this host, so the launcher ends all others, wherever they are.
        """
        self._selector.unregister(self._server)
        ends = time.monotonic() + ENDING_S
        while self._ranks and time.monotonic() < ends:
            for key, _ in self._selector.select(timeout=BEAT_S / 4):
                if self._read(key.data) == b"":
                    self._ranks.pop(key.data.number, None)
        # Each connection left is open, so the process id still belongs to the rank.
        for number, rank in self._ranks.items():
            if self._hosts[number] == self._hosts[0]:
                with suppress(ProcessLookupError):
                    os.kill(rank.pid, signal.SIGKILL)

    def _broadcast(self, message: dict[str, Any]) -> None:
        for rank in self._ranks.values():
            with suppress(OSError):  # a closed connection is noticed where it is read
                rank.link.sendall(json.dumps(message).encode() + b"\n")


def lost_message(rank: int, hosts: Sequence[str], how: str) -> bytes:
    """Return the error for a lost ``rank``; ``how`` is the symptom."""
    return (
        f"error: rank {rank} on {hosts[rank]} {how}. All {len(hosts)} ranks are ended\n"
        "  Fix: check that host, then run the same command again: it resumes from the last checkpoint\n"
    ).encode()


if __name__ == "__main__":
    hub = Hub(*json.loads(sys.stdin.readline()))
    print(hub.port, flush=True)
    hub.run()
