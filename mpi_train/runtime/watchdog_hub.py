"""The process that the ranks report to, and that names the one which is lost.

A process of its own, started by rank 0 in a session of its own: when one rank dies, mpiexec kills all others
at once, and a thread among them may not get to speak. Without TensorFlow or NumPy, so
that it starts at once and costs nothing.
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
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

BEAT_S = 1.0
HEARING_S = 8.0
"""Seconds that a rank has to end when it is told to."""
STARTING_FACTOR = 5
"""Imports and tracing may hold a rank up for longer than training ever should."""
START_S = 60.0
"""Seconds that the ranks have to report for the first time."""


@dataclass
class Rank:
    """What the hub knows of a rank.

    Attributes:
        number: In the world.
        pid: Of its process, on its host.
        heard: When it was last heard of.
        stands: Since when its training has been where it is.
    """

    link: socket.socket
    number: int = -1
    pid: int = 0
    heard: float = field(default_factory=time.monotonic)
    doing: str = "start-up"
    starting: bool = True
    calls: int = 0
    inside: bool = False
    stands: float = field(default_factory=time.monotonic)
    buffer: bytes = b""


class Hub:
    """Args:
    token: What a rank must know to be let in.
    hosts: Host name of each rank.
    timeout_s: Silence after which a rank is given up.
    """

    def __init__(self, token: str, hosts: list[str], timeout_s: float) -> None:
        self._token, self._hosts, self._timeout_s = token, hosts, timeout_s
        self._server = socket.create_server(("", 0), backlog=len(hosts))
        self.port = int(self._server.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._ranks: dict[int, Rank] = {}
        self._ending: float | None = None

    def run(self) -> None:
        """Until all ranks have left, or one is lost."""
        beat = looked = begun = time.monotonic()
        while self._ranks or time.monotonic() - begun < START_S:
            # In the order in which it happened: the rank that died before those that were killed for it.
            for key, _ in self._selector.select(timeout=BEAT_S / 4):
                if key.fileobj is self._server:
                    self._accept()
                elif self._hear(key.data):
                    return
            now = time.monotonic()
            if now - looked > 5 * BEAT_S:
                # This process was asleep itself, and the ranks maybe with it.
                for rank in self._ranks.values():
                    rank.heard = rank.stands = now
            looked = now
            if now - beat >= BEAT_S:
                beat = now
                self._tell({})
            if self._overdue(now):
                return

    def _accept(self) -> None:
        link, _ = self._server.accept()
        link.setblocking(False)
        self._selector.register(link, selectors.EVENT_READ, Rank(link))

    def _hear(self, rank: Rank) -> bool:
        """Takes what a rank says; whether the job is at its end."""
        try:
            received = rank.link.recv(65536)
        except BlockingIOError:
            return False
        except OSError:
            received = b""
        if not received:
            self._selector.unregister(rank.link)
            if self._ranks.get(rank.number) is not rank:
                return False
            del self._ranks[rank.number]
            if self._ending is None:
                self._lost(rank, "was lost: its process ended without a word")
                return True
            return not self._ranks
        rank.heard = time.monotonic()
        *lines, rank.buffer = (rank.buffer + received).split(b"\n")
        ended = [self._take(rank, line) for line in lines]
        return any(ended)

    def _take(self, rank: Rank, line: bytes) -> bool:
        try:
            said: dict[str, Any] = json.loads(line)
            if rank.number < 0:
                self._let_in(rank, said)
                return False
        except (ValueError, KeyError, TypeError, AttributeError):
            self._selector.unregister(rank.link)
            rank.link.close()
            return False
        if said.get("aborting"):
            return True  # it has said why, and ends all others
        if said.get("left"):
            self._ending = self._ending or time.monotonic()
        if "doing" in said:
            rank.doing, rank.starting = said["doing"], said["starting"]
            if (rank.calls, rank.inside) != (said["calls"], said["inside"]):
                rank.calls, rank.inside, rank.stands = said["calls"], said["inside"], rank.heard
        return False

    def _let_in(self, rank: Rank, said: dict[str, Any]) -> None:
        if not hmac.compare_digest(str(said["token"]), self._token):
            raise ValueError("not one of ours")
        # A rank that gave up waiting for the answer calls again.
        rank.number, rank.pid = int(said["rank"]), int(said["pid"])
        self._ranks[rank.number] = rank
        rank.link.sendall(b"{}\n")

    def _overdue(self, now: float) -> bool:
        """Looks for ranks that are silent, or hang; whether the job is at its end."""
        ranks = list(self._ranks.values())
        patience_s = self._timeout_s * (STARTING_FACTOR if any(rank.starting for rank in ranks) else 1)
        for rank in ranks:
            if now - rank.heard > patience_s:
                self._lost(rank, f"has not been heard of for {patience_s:g} s")
                return True
        if self._ending is not None and now - self._ending > START_S and ranks:
            self._lost(ranks[0], f"is still there {START_S:g} s after others have ended")
            return True
        # Later than silence is noticed: a rank that was stopped does not come to the step either.
        waited_s = patience_s + 3 * BEAT_S
        missing = [rank for rank in ranks if not rank.inside]
        if missing and len(missing) < len(ranks) and all(now - rank.stands > waited_s for rank in ranks):
            self._lost(missing[0], f"hangs: the others have waited {waited_s:g} s for it in a step")
            return True
        return False

    def _lost(self, rank: Rank, how: str) -> None:
        message = (
            f"error: rank {rank.number} on {self._hosts[rank.number]} {how} (last known: {rank.doing}). "
            f"All {len(self._hosts)} ranks are ended\n"
            "  Fix: see to that host, then run the same command again, which goes on from the last "
            "checkpoint\n"
        )
        os.write(2, message.encode())
        self._tell({"end": True})
        self._end_the_deaf()

    def _end_the_deaf(self) -> None:
        """Kills those ranks of this host that do not end: stopped ones, and ones that wait inside a library.

        Rank 0 is here, so that the launcher ends all others, wherever they are.
        """
        self._selector.unregister(self._server)
        ends = time.monotonic() + HEARING_S
        while self._ranks and time.monotonic() < ends:
            for key, _ in self._selector.select(timeout=BEAT_S / 4):
                try:
                    closed = not key.data.link.recv(65536)
                except BlockingIOError:
                    continue
                except OSError:
                    closed = True
                if closed:
                    self._selector.unregister(key.fileobj)
                    self._ranks.pop(key.data.number, None)
        # Its connection is open, so the number is still that of the process.
        for number, rank in self._ranks.items():
            if self._hosts[number] == self._hosts[0]:
                with suppress(ProcessLookupError):
                    os.kill(rank.pid, signal.SIGKILL)

    def _tell(self, said: dict[str, Any]) -> None:
        for rank in self._ranks.values():
            try:
                rank.link.sendall(json.dumps(said).encode() + b"\n")
            except OSError:
                continue  # its end is noticed where it is read


if __name__ == "__main__":
    hub = Hub(**json.loads(sys.stdin.readline()))
    print(hub.port, flush=True)
    hub.run()
