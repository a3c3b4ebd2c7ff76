"""Watchdog: end the job, with the name of the lost rank, instead of hanging.

A collective of MPI waits for ever for a rank that has stopped. So a thread of every rank reports to a hub
once a second, over TCP, that the rank is alive and what the rank does; the hub answers. A connection that
closes without a goodbye means that the rank died. Silence for too long means that the rank was stopped, or
that its node has no power. A rank hangs if the others wait for it in the all-reduce of a step. In each case
all ranks end with exit code 6.
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
from mpi_train.runtime.errors import RankLostError
from mpi_train.runtime.watchdog_hub import BEAT_S, STARTING_FACTOR, lost_message
from mpi_train.runtime.world import World

_CONNECT_S = 10.0
_UNWATCHED = "should a rank be lost, the job would hang"

_current: Watch | None = None


@dataclass
class Activity:
    """Position of the training thread, kept by the all-reduce of each step."""

    calls: int = 0  # all-reduces entered so far
    inside: bool = False  # one of them


activity = Activity()


def note(doing: str, *, starting: bool = False) -> None:
    """Record the activity of this rank, such as ``epoch 2, evaluation``, for the message if it is lost.

    A rank that is ``starting`` may be silent for longer.
    """
    if _current is not None:
        _current.note(doing, starting=starting)


def start(world: World, timeout_s: float) -> None:
    """Start watching the ranks, of which one that is silent for ``timeout_s`` is lost. Collective."""
    global _current
    if world.size > 1:
        _current = watch = Watch(world, timeout_s)
        worlds.before_abort.append(lambda: watch.leave(aborting=True))
        atexit.register(watch.leave)


def end_for(world: World, lost: int, how: str) -> NoReturn:
    """End this rank because ``lost`` is lost and the hub cannot say so; one of those left prints the error.

    ``how`` is the symptom, such as ``has not been heard of for 60 s``.
    """
    if world.rank == (1 if lost == 0 else 0):
        os.write(2, lost_message(lost, world.hosts, how))
    else:
        time.sleep(2)  # mpiexec ends all ranks as soon as one exits: the rank that prints goes first
    if _current is not None:
        _current.leave(aborting=True)
    worlds.leave(world, RankLostError.exit_code)


class Watch:
    """Connection of this rank to the hub, kept by a thread.

    If the hub ends unexpectedly, rank 0 prints a warning and the run continues unwatched.
    """

    def __init__(self, world: World, timeout_s: float) -> None:
        self._world, self._timeout_s = world, timeout_s
        self._doing, self._starting = "start-up", True
        self._lock = threading.Lock()
        self._left = False
        token = secrets.token_hex(16)
        port = self._start_hub(token) if world.is_root else 0
        self._link = self._connect(*world.gather_all((_own_addresses(), port, token))[0])
        for rank, connected in enumerate(world.gather_all(self._link is not None)):
            if world.is_root and not connected:
                _warn(
                    f"rank {rank} on {world.hosts[rank]} cannot reach {world.hosts[0]} by TCP "
                    f"(port {port}): {_UNWATCHED}"
                )
        if self._link is not None:
            threading.Thread(target=self._run, args=[self._link], name="watchdog", daemon=True).start()

    def note(self, doing: str, *, starting: bool) -> None:
        """Record the present activity."""
        at_once = starting or self._starting
        self._doing, self._starting = doing, starting
        if at_once:  # the hub's patience depends on it; all else can wait for the next beat
            self._beat()

    def leave(self, *, aborting: bool = False) -> None:
        """Say goodbye to the hub: this rank is about to end and is not lost."""
        self._left = True
        self._send({"left": True, "aborting": aborting})

    def _start_hub(self, token: str) -> int:
        """Start the hub on this host and return its port."""
        # A session of its own, as mpiexec kills the process groups of the ranks.
        self._hub = subprocess.Popen(
            [sys.executable, "-I", watchdog_hub.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._hub.stdin is not None
        assert self._hub.stdout is not None
        self._hub.stdin.write(json.dumps((token, self._world.hosts, self._timeout_s)) + "\n")
        self._hub.stdin.flush()
        return int(self._hub.stdout.readline())

    def _connect(self, addresses: list[str], port: int, token: str) -> socket.socket | None:
        """Connect to the hub, under the first of its ``addresses`` that answers."""
        hello = {"token": token, "rank": self._world.rank, "pid": os.getpid()}
        ends = time.monotonic() + _CONNECT_S
        while time.monotonic() < ends:
            for address in ["127.0.0.1"] if self._world.is_root else addresses:
                with suppress(OSError):
                    link = socket.create_connection((address, port), timeout=2)
                    link.sendall(json.dumps(hello).encode() + b"\n")
                    if link.recv(3):
                        link.settimeout(BEAT_S / 4)
                        return link
                    link.close()
            time.sleep(0.1)
        return None

    def _run(self, link: socket.socket) -> None:
        """Exchange beats with the hub until either leaves."""
        heard = looked = beat = time.monotonic()
        buffer = b""
        while True:
            try:
                received = link.recv(65536)
                if not received:
                    break
                heard = time.monotonic()
                *lines, buffer = (buffer + received).split(b"\n")
                said = {word for line in lines for word in json.loads(line)}
                if "end" in said and not self._left:
                    worlds.leave(self._world, RankLostError.exit_code)
                if "over" in said:
                    return
            except TimeoutError:
                pass
            except OSError:
                break
            now = time.monotonic()
            if now - looked > 5 * BEAT_S:
                heard = now  # this process was suspended, and the hub may have been suspended with it
            looked = now
            if now - beat >= BEAT_S:
                beat = now
                self._beat()
            if now - heard > self._patience_s + 2 * BEAT_S and not self._left:
                # The node of rank 0 is silent, and the hub with it.
                end_for(self._world, 0, f"has not been heard of for {self._patience_s:g} s")
        link.close()
        # A signal that kills the whole job may reach the hub before this process.
        time.sleep(BEAT_S)
        if self._world.is_root and not self._left:
            _warn(f"the hub of the watchdog on {self._world.hosts[0]} ended unexpectedly: {_UNWATCHED}")

    @property
    def _patience_s(self) -> float:
        return self._timeout_s * (STARTING_FACTOR if self._starting else 1)

    def _beat(self) -> None:
        self._send({"doing": self._doing, "starting": self._starting, **vars(activity)})

    def _send(self, message: dict[str, Any]) -> None:
        # A closed connection is noticed where it is read.
        with suppress(OSError), self._lock:
            if self._link is not None:
                self._link.sendall(json.dumps(message).encode() + b"\n")


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def _own_addresses() -> list[str]:
    """List the names and addresses under which other nodes may reach this one."""
    host = socket.gethostname()
    found = [host]
    with suppress(OSError):
        found += [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    # The source address of a packet to another network; nothing is sent.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        found.append(probe.getsockname()[0])
    return [*dict.fromkeys(found), "127.0.0.1"]
