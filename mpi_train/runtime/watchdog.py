"""Ranks that are watched, so that one that is lost ends the job with its name instead of a hang.

MPI cannot tell: a collective waits for ever for a rank that has stopped. So every rank has a thread that
tells a hub once a second, over TCP, that it is alive and what it does; the hub answers in kind. A
connection that closes without a word is a rank that died; one that is silent for too long is a rank that
was stopped, or whose node has no power. And where some ranks have waited in the all-reduce of a step for
too long, the one that has not come to it hangs, though it lives. Then all end with code 6.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from mpi_train.runtime import watchdog_hub
from mpi_train.runtime import world as worlds
from mpi_train.runtime.errors import EXIT_RANK_LOST, RankLostError
from mpi_train.runtime.watchdog_hub import BEAT_S, STARTING_FACTOR
from mpi_train.runtime.world import World

_CONNECT_S = 10.0

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
        worlds.before_abort(lambda: _current.leave(aborting=True) if _current else None)
        atexit.register(_current.leave)


def end_for(world: World, lost: int, how: str) -> NoReturn:
    """Ends this rank because another is lost, when the hub cannot say so; one of those that are left speaks.

    Args:
        world: The ranks.
        lost: The number of the other.
        how: Such as ``has not been heard of for 60 s``.
    """
    if world.rank == (1 if lost == 0 else 0):
        error = RankLostError(
            f"rank {lost} on {world.hosts[lost]} {how}. All {world.size} ranks are ended",
            remedy="see to that host, then run the same command again, which goes on from the last "
            "checkpoint",
        )
        os.write(2, f"error: {error}\n".encode())
    else:
        time.sleep(2)  # mpiexec ends all as soon as one has left: the one that speaks goes first
    if _current is not None:
        _current.leave(aborting=True)
    worlds.leave(world, EXIT_RANK_LOST)


class Watch:
    """Args: as for ``start``."""

    def __init__(self, world: World, timeout_s: float) -> None:
        self._world, self._timeout_s = world, timeout_s
        self._doing, self._starting = "start-up", True
        self._lock = threading.Lock()
        self._left = False
        self._link = self._connect()
        if self._link is not None:
            threading.Thread(target=self._run, args=(self._link,), name="watch", daemon=True).start()

    def note(self, doing: str, *, starting: bool) -> None:
        """As the function of this name."""
        at_once = starting or self._starting
        self._doing, self._starting = doing, starting
        if at_once:  # the hub's patience hangs on it; all else can wait for the next beat
            self._beat()

    def leave(self, *, aborting: bool = False) -> None:
        """Says goodbye: this rank is about to end, and that is no loss."""
        self._left = True
        self._send({"left": True, "aborting": aborting})

    def _connect(self) -> socket.socket | None:
        """A connection to the hub; a rank that cannot reach it is not watched, and that is said."""
        world = self._world
        offer = self._start_hub() if world.is_root else None
        addresses, port, token = world.gather_all(offer)[0]  # type: ignore[misc]
        link = _call(["127.0.0.1"] if world.is_root else addresses, port, token, world.rank)
        for rank, reached in enumerate(world.gather_all(link is not None)):
            if world.is_root and not reached:
                print(
                    f"warning: rank {rank} on {world.hosts[rank]} cannot reach {world.hosts[0]} by TCP "
                    f"(port {port}): should it be lost, the job would hang",
                    file=sys.stderr,
                    flush=True,
                )
        return link

    def _start_hub(self) -> tuple[list[str], int, str]:
        token = secrets.token_hex(16)
        # mpiexec kills the ranks' process groups.
        process = subprocess.Popen(
            [sys.executable, "-I", watchdog_hub.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        told = {"token": token, "hosts": self._world.hosts, "timeout_s": self._timeout_s}
        process.stdin.write(json.dumps(told) + "\n")
        process.stdin.flush()
        return _addresses(), int(process.stdout.readline()), token

    def _run(self, link: socket.socket) -> None:
        heard = looked = beat = time.monotonic()
        link.settimeout(BEAT_S / 4)
        buffer = b""
        while True:
            try:
                received = link.recv(65536)
                if not received:
                    return  # the hub has nobody left to watch
                heard = time.monotonic()
                *lines, buffer = (buffer + received).split(b"\n")
                if any(json.loads(line).get("end") for line in lines) and not self._left:
                    worlds.leave(self._world, EXIT_RANK_LOST)
            except TimeoutError:
                pass
            except OSError:
                return
            now = time.monotonic()
            if now - looked > 5 * BEAT_S:
                heard = now  # this process was asleep itself, and the hub maybe with it
            looked = now
            if now - beat >= BEAT_S:
                beat = now
                self._beat()
            patience_s = self._timeout_s * (STARTING_FACTOR if self._starting else 1)
            if now - heard > patience_s + 2 * BEAT_S and not self._left:
                self._hub_lost(patience_s)

    def _hub_lost(self, patience_s: float) -> None:
        """Ends this rank when the node of rank 0, and the hub with it, is silent."""
        end_for(self._world, 0, f"has not been heard of for {patience_s:g} s")

    def _beat(self) -> None:
        self._send({"doing": self._doing, "starting": self._starting, **vars(activity)})

    def _send(self, said: dict[str, Any]) -> None:
        # An end of the connection is noticed where it is read.
        with suppress(OSError), self._lock:
            if self._link is not None:
                self._link.sendall(json.dumps(said).encode() + b"\n")


def _call(addresses: list[str], port: int, token: str, rank: int) -> socket.socket | None:
    """A connection to the hub, under the first address that answers."""
    ends = time.monotonic() + _CONNECT_S
    while time.monotonic() < ends:
        for address in addresses:
            with suppress(OSError):
                link = socket.create_connection((address, port), timeout=2)
                link.sendall(json.dumps({"token": token, "rank": rank, "pid": os.getpid()}).encode() + b"\n")
                if link.recv(3):
                    return link
                link.close()
        time.sleep(0.1)
    return None


def _addresses() -> list[str]:
    """Names and addresses under which other nodes may reach this one."""
    host = socket.gethostname()
    found = [host]
    with suppress(OSError):
        found += [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    # The address that a packet to elsewhere would leave from; nothing is sent.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        found.append(probe.getsockname()[0])
    return [*dict.fromkeys(found), "127.0.0.1"]
