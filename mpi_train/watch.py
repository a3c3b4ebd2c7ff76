"""Ranks that watch each other, so that one that is lost ends the job with its name instead of a hang.

MPI cannot tell: a collective waits for ever for a rank that has stopped. So every rank has a thread that
tells rank 0 once a second, over TCP, that it is alive and what it does; rank 0 answers in kind. A
connection that closes without a word is a rank that died; one that is silent for too long is a rank that
was stopped, or whose node has no power. And where some ranks have waited in the all-reduce of a step for
too long, the one that has not come to it hangs, though it lives. Whoever notices ends the job with code 6.
"""

from __future__ import annotations

import atexit
import hmac
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mpi_train import world as worlds
from mpi_train.errors import EXIT_RANK_LOST, RankLostError
from mpi_train.world import World

BEAT_S = 1.0
STARTING_FACTOR = 5
"""Imports and tracing may hold a rank up for longer than training ever should."""
_CONNECT_S = 20.0
_MAX_LINE = 4096

_current: Watch | None = None


@dataclass
class Activity:
    """What the training thread does, told by the all-reduce of each step.

    Attributes:
        calls: How many it has come to.
        inside: Whether it is in one now.
    """

    calls: int = 0
    inside: bool = False


activity = Activity()


def note(doing: str, *, starting: bool = False) -> None:
    """Says what this rank does now, for the message should it be lost.

    Args:
        doing: Such as ``epoch 2, evaluation``.
        starting: Whether it may be silent for longer.
    """
    if _current is not None:
        _current.note(doing, starting=starting)


def start(world: World, timeout_s: float) -> None:
    """Starts watching, on all ranks together.

    Args:
        world: The ranks.
        timeout_s: Silence after which a rank is given up; ``STARTING_FACTOR`` times that while it starts.
    """
    global _current
    if world.size > 1:
        _current = Watch(world, timeout_s)
        worlds.before_abort(_current.leave)
        atexit.register(_current.leave)


@dataclass
class _Stood:
    """Since when a rank's training thread has been where it is."""

    calls: int = 0
    inside: bool = False
    since: float = field(default_factory=time.monotonic)

    def update(self, calls: int, inside: bool) -> None:
        if (calls, inside) != (self.calls, self.inside):
            self.calls, self.inside, self.since = calls, inside, time.monotonic()


@dataclass
class _Peer:
    """The other end of a connection."""

    rank: int
    link: socket.socket
    heard: float = field(default_factory=time.monotonic)
    doing: str = "start-up"
    starting: bool = True
    left: bool = False
    buffer: bytes = b""
    stood: _Stood = field(default_factory=_Stood)


class Watch:
    """Args: as for ``start``.

    Attributes:
        doing, starting: As ``note`` has them.
    """

    def __init__(self, world: World, timeout_s: float) -> None:
        self._world, self._timeout_s = world, timeout_s
        self.doing, self.starting = "start-up", True
        self._selector = selectors.DefaultSelector()
        self._peers: list[_Peer] = []
        self._stood = _Stood()
        self._lock = threading.Lock()
        self._left = False
        self._connect()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def note(self, doing: str, *, starting: bool) -> None:
        """As the function of this name."""
        changed = starting != self.starting
        self.doing, self.starting = doing, starting
        if changed:  # the others' patience hangs on it; all else can wait for the next beat
            self._beat()

    def leave(self) -> None:
        """Says goodbye: this rank is about to end, and that is no loss."""
        self._left = True
        for peer in self._peers:
            self._send(peer, {"left": True})

    # ---- Connections ------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Connects every rank with rank 0; a rank that cannot be reached is not watched, and that is said."""
        world = self._world
        server: socket.socket | None = None
        offer = None
        if world.is_root:
            server = socket.create_server(("", 0), backlog=world.size)
            offer = (_addresses(), server.getsockname()[1], secrets.token_hex(16))
        addresses, port, token = world.gather_all(offer)[0]  # type: ignore[misc]
        accepting = threading.Thread(target=self._accept, args=(server, token))
        if server is not None:
            accepting.start()
        else:
            self._call(addresses, port, token)
        connected = world.gather_all(world.is_root or bool(self._peers))
        if server is not None:
            server.close()
            accepting.join()
            for rank, reached in enumerate(connected):
                if not reached:
                    print(
                        f"warning: rank {rank} on {world.hosts[rank]} cannot reach {world.hosts[0]} by TCP "
                        f"(port {port}): should it be lost, the job would hang",
                        file=sys.stderr,
                        flush=True,
                    )
        for peer in self._peers:
            peer.link.setblocking(False)
            peer.heard = time.monotonic()
            self._selector.register(peer.link, selectors.EVENT_READ, peer)

    def _accept(self, server: socket.socket, token: str) -> None:
        """Takes the calls of the other ranks; whoever does not know the token is turned away."""
        server.settimeout(0.2)
        ends = time.monotonic() + _CONNECT_S
        while len(self._peers) < self._world.size - 1 and time.monotonic() < ends:
            try:
                link, _ = server.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            link.settimeout(2)
            try:
                word, _, rank = link.recv(64).decode().strip().partition(" ")
                if not hmac.compare_digest(word, token) or not 0 < int(rank) < self._world.size:
                    raise ValueError("not one of ours")
                link.sendall(b"welcome\n")
            except (OSError, ValueError):
                link.close()
                continue
            # One that gave up waiting for an answer calls again.
            for old in [peer for peer in self._peers if peer.rank == int(rank)]:
                old.link.close()
                self._peers.remove(old)
            self._peers.append(_Peer(int(rank), link))

    def _call(self, addresses: list[str], port: int, token: str) -> None:
        ends = time.monotonic() + _CONNECT_S / 2
        while time.monotonic() < ends:
            for address in addresses:
                try:
                    link = socket.create_connection((address, port), timeout=2)
                    link.sendall(f"{token} {self._world.rank}\n".encode())
                    if link.recv(8) == b"welcome\n":
                        self._peers.append(_Peer(0, link))
                        return
                    link.close()
                except OSError:
                    continue
            time.sleep(0.1)

    # ---- The thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        beat = looked = time.monotonic()
        while self._peers:
            for key, _ in self._selector.select(timeout=BEAT_S / 4):
                self._hear(key.data)
            now = time.monotonic()
            if now - looked > 5 * BEAT_S:
                # This process was asleep itself, and the others maybe with it.
                for peer in self._peers:
                    peer.heard = peer.stood.since = now
                self._stood.since = now
            looked = now
            if now - beat >= BEAT_S:
                beat = now
                self._beat()
            for peer in self._peers:
                limit_s = self._timeout_s * (STARTING_FACTOR if peer.starting or self.starting else 1)
                if now - peer.heard > limit_s:
                    self._lost(peer.rank, f"has not been heard of for {limit_s:g} s", peer.doing)
            self._stood.update(activity.calls, activity.inside)
            if self._world.is_root:
                self._find_hanging(now)

    def _find_hanging(self, now: float) -> None:
        """Ends the job when some ranks wait in an all-reduce that another does not come to."""
        # Later than silence is noticed: a rank that was stopped does not come either.
        starting = self.starting or any(peer.starting for peer in self._peers)
        limit_s = self._timeout_s * (STARTING_FACTOR if starting else 1) + 3 * BEAT_S
        ranks = [(0, self._stood, self.doing), *((peer.rank, peer.stood, peer.doing) for peer in self._peers)]
        if any(now - stood.since < limit_s for _, stood, _ in ranks):
            return
        missing = [(rank, doing) for rank, stood, doing in ranks if not stood.inside]
        if missing and len(missing) < len(ranks):
            rank, doing = missing[0]
            self._lost(rank, f"hangs: the others have waited {limit_s:g} s for it in a step", doing)

    def _beat(self) -> None:
        for peer in self._peers:
            self._send(peer, {"doing": self.doing, "starting": self.starting, **vars(activity)})

    def _hear(self, peer: _Peer) -> None:
        try:
            received = peer.link.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._selector.unregister(peer.link)
            self._peers.remove(peer)
            if not (peer.left or self._left):
                self._lost(peer.rank, "was lost: its process ended without a word", peer.doing)
            return
        peer.heard = time.monotonic()
        *lines, peer.buffer = (peer.buffer + received).split(b"\n")
        peer.buffer = peer.buffer[-_MAX_LINE:]
        for line in lines:
            self._take(peer, json.loads(line))

    def _take(self, peer: _Peer, said: dict[str, Any]) -> None:
        peer.left |= bool(said.get("left"))
        if "doing" in said:
            peer.doing, peer.starting = str(said["doing"]), bool(said["starting"])
            peer.stood.update(int(said["calls"]), bool(said["inside"]))
        if "end" in said and not self._left:
            os._exit(EXIT_RANK_LOST)

    def _send(self, peer: _Peer, said: dict[str, object]) -> None:
        try:
            with self._lock:
                peer.link.sendall(json.dumps(said).encode() + b"\n")
        except OSError:
            pass  # its end is noticed where it is read

    def _lost(self, rank: int, how: str, doing: str) -> None:
        """Ends this rank, and from rank 0 all others, with a message from the lowest that is left."""
        world = self._world
        error = RankLostError(
            f"rank {rank} on {world.hosts[rank]} {how} (last known: {doing}). "
            f"All {world.size} ranks are ended",
            remedy="see to that host, then run the same command again: it goes on from the last checkpoint",
        )
        # Rank 0 speaks of itself only where it hangs, and its watch does not.
        if world.is_root or (world.rank == 1 and rank == 0):
            os.write(2, f"error: {error}\n".encode())
        else:
            time.sleep(2)  # mpiexec ends all as soon as one has left: the one that speaks goes first
        for other in self._peers:
            self._send(other, {"end": True})
        sys.stdout.flush()
        os._exit(EXIT_RANK_LOST)


def _addresses() -> list[str]:
    """Names and addresses under which other nodes may reach this one."""
    host = socket.gethostname()
    found = [host]
    with suppress(OSError):
        found += [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    # The address that a packet to elsewhere would leave from; nothing is sent.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            found.append(probe.getsockname()[0])
        except OSError:
            pass
    return [*dict.fromkeys(found), "127.0.0.1"]
