"""The watchdog on plain sockets, with short beats: lost ranks are named, and so is a lost hub."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from mpi_train.runtime import watchdog, watchdog_hub
from mpi_train.runtime.world import World

pytestmark = pytest.mark.mpi_skip

BEAT_S = 0.04
TIMEOUT_S = 1.0


class FakeRank:
    """A rank as the hub sees it: a process to kill, and a connection over which a thread reports."""

    def __init__(self, number: int, port: int, token: str = "secret") -> None:
        self.process = subprocess.Popen(["sleep", "60"])
        self.link = socket.create_connection(("127.0.0.1", port))
        self.activity: dict[str, Any] = {"doing": "epoch 2", "starting": False, "calls": 0, "inside": False}
        self.advances, self.beats, self.heard = True, True, b""
        self.say({"token": token, "rank": number, "pid": self.process.pid})
        threading.Thread(target=self._live, daemon=True).start()

    def say(self, message: dict[str, Any]) -> None:
        self.link.sendall(json.dumps(message).encode() + b"\n")

    def _live(self) -> None:
        with suppress(OSError):
            while True:
                if self.beats:
                    self.activity["calls"] += self.advances
                    self.say(self.activity)
                time.sleep(BEAT_S)

    def die(self) -> None:
        self.link.shutdown(socket.SHUT_RDWR)

    def is_told(self, word: str) -> bool:
        """Read until the hub sends ``word`` or closes the connection."""
        self.link.settimeout(10)
        with suppress(OSError):
            while f'"{word}"'.encode() not in self.heard and (received := self.link.recv(4096)):
                self.heard += received
        return f'"{word}"'.encode() in self.heard


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog_hub, "BEAT_S", BEAT_S)
    monkeypatch.setattr(watchdog_hub, "ENDING_S", 0.2)
    monkeypatch.setattr(watchdog_hub, "START_S", 3.0)


class Hub:
    """A hub in a thread, and the ranks that are connected to it."""

    def __init__(self, size: int) -> None:
        self.hub = watchdog_hub.Hub("secret", [f"n{rank}" for rank in range(size)], TIMEOUT_S)
        self.thread = threading.Thread(target=self.hub.run, daemon=True)
        self.thread.start()
        self.ranks: list[FakeRank] = []

    def connect(self, *numbers: int) -> list[FakeRank]:
        self.ranks += [FakeRank(number, self.hub.port) for number in numbers]
        return self.ranks

    def ended(self) -> bool:
        self.thread.join(10)
        return not self.thread.is_alive()


@pytest.fixture
def hub(short_times: None) -> Iterator[Callable[..., Hub]]:
    hubs: list[Hub] = []

    def start(size: int) -> Hub:
        hubs.append(Hub(size))
        return hubs[-1]

    yield start
    for each in hubs:
        for rank in each.ranks:
            rank.link.close()
            rank.process.kill()
            rank.process.wait()
        each.thread.join(10)
        for key in list(each.hub._selector.get_map().values()):
            key.fileobj.close()
        each.hub._server.close()
        each.hub._selector.close()


@pytest.mark.launches
def test_a_rank_that_dies_is_named_and_the_others_are_ended(
    hub: Callable[..., Hub], capfd: pytest.CaptureFixture[str]
) -> None:
    watched = hub(3)
    ranks = watched.connect(0, 1, 2)
    time.sleep(4 * BEAT_S)
    ranks[1].die()
    assert ranks[0].is_told("end")
    assert ranks[2].is_told("end")
    assert watched.ended()
    error = capfd.readouterr().err
    assert error.startswith(
        "error: rank 1 on n1 was lost: its process exited unexpectedly (last known: epoch 2)"
    )
    assert error.count("error: ") == 1
    assert "  Fix: check that host" in error


@pytest.mark.launches
def test_a_silent_rank_is_named_after_the_timeout_and_killed_on_this_host(
    hub: Callable[..., Hub], capfd: pytest.CaptureFixture[str]
) -> None:
    watched = hub(2)
    ranks = watched.connect(0, 1)
    time.sleep(2 * BEAT_S)
    ranks[0].beats = False  # as a stopped process, which keeps its connection and does not end by itself
    assert ranks[1].is_told("end")
    ranks[1].die()
    assert watched.ended()
    assert "rank 0 on n0 has not been heard of for 1 s" in capfd.readouterr().err
    assert ranks[0].process.wait(5) == -signal.SIGKILL
    assert ranks[1].process.poll() is None


@pytest.mark.launches
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_hangs_alive_is_named(
    victim: int, hub: Callable[..., Hub], capfd: pytest.CaptureFixture[str]
) -> None:
    watched = hub(3)
    ranks = watched.connect(0, 1, 2)
    for number, rank in enumerate(ranks):
        rank.advances, rank.activity["inside"] = False, number != victim
    assert ranks[2].is_told("end")
    assert f"rank {victim} on n{victim} hangs: the others have waited" in capfd.readouterr().err


@pytest.mark.launches
def test_a_slow_start_a_long_evaluation_and_a_goodbye_are_no_loss(
    hub: Callable[..., Hub], capfd: pytest.CaptureFixture[str]
) -> None:
    watched = hub(2)
    (first,) = watched.connect(0)
    first.beats = False
    time.sleep(2 * BEAT_S)  # until a beat on its way has left
    first.activity["starting"] = True
    first.say(first.activity)
    time.sleep(2 * TIMEOUT_S)  # a starting rank has five times as long, and the other connects late
    ranks = watched.connect(1)
    first.activity["starting"], first.beats = False, True
    for rank in ranks:
        rank.advances = False  # no rank is in an all-reduce, so none waits for another
    time.sleep(TIMEOUT_S + 5 * BEAT_S)
    for rank in ranks:
        rank.beats = False
        rank.say({"left": True, "aborting": False})
    time.sleep(TIMEOUT_S + 5 * BEAT_S)  # a process that has said goodbye may take a while to end
    for rank in ranks:
        rank.die()
    assert watched.ended()
    assert capfd.readouterr().err == ""


@pytest.mark.launches
def test_a_rank_that_stays_after_the_others_have_left_is_named(
    hub: Callable[..., Hub], capfd: pytest.CaptureFixture[str]
) -> None:
    watched = hub(2)
    ranks = watched.connect(0, 1)
    time.sleep(2 * BEAT_S)
    ranks[1].say({"left": True, "aborting": False})
    ranks[1].die()
    assert ranks[0].is_told("end")
    assert "rank 0 on n0 is still there 3 s after others have ended" in capfd.readouterr().err


@pytest.mark.launches
def test_a_rank_that_aborts_has_printed_its_reason(
    hub: Callable[..., Hub], capfd: pytest.CaptureFixture[str]
) -> None:
    watched = hub(2)
    ranks = watched.connect(0, 1)
    time.sleep(2 * BEAT_S)
    ranks[1].say({"left": True, "aborting": True})
    assert ranks[0].is_told("over")
    assert watched.ended()
    assert capfd.readouterr().err == ""


@pytest.mark.launches
def test_a_machine_that_was_suspended_loses_nobody(
    hub: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    watched = hub(2)
    ranks = watched.connect(0, 1)
    time.sleep(2 * BEAT_S)
    real, offset = time.monotonic, 3600.0
    monkeypatch.setattr(watchdog_hub.time, "monotonic", lambda: real() + offset)
    time.sleep(TIMEOUT_S + 5 * BEAT_S)
    monkeypatch.undo()
    assert watched.thread.is_alive()
    assert all(rank.process.poll() is None for rank in ranks)
    assert capfd.readouterr().err == ""


@pytest.mark.launches
def test_a_stranger_is_sent_away_and_a_rank_may_connect_again(hub: Callable[..., Hub]) -> None:
    watched = hub(1)
    with socket.create_connection(("127.0.0.1", watched.hub.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\nHost: n0\n\n")
        assert stranger.recv(100) == b""
    thief = FakeRank(0, watched.hub.port, token="guessed")
    assert not thief.is_told("anything")
    thief.process.kill()
    thief.process.wait()
    thief.link.close()
    watched.connect(0, 0)
    time.sleep(4 * BEAT_S)
    assert watched.thread.is_alive()


class FakeComm:
    """The collective that the watchdog needs, over threads."""

    def __init__(self, size: int) -> None:
        self._barrier, self._values = threading.Barrier(size), [None] * size

    def of(self, rank: int) -> Any:
        def allgather(value: Any) -> list[Any]:
            self._values[rank] = value
            self._barrier.wait(20)
            values = list(self._values)
            self._barrier.wait(20)
            return values

        return type("Comm", (), {"allgather": staticmethod(allgather)})()


@pytest.mark.launches
def test_a_killed_hub_is_reported_once_and_the_ranks_stay(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "BEAT_S", 0.1)
    comm, host = FakeComm(3), socket.gethostname()
    watches: dict[int, watchdog.Watch] = {}

    def join(rank: int) -> None:
        world = World(rank=rank, size=3, hosts=(host,) * 3, comm=comm.of(rank))
        watches[rank] = watchdog.Watch(world, 60)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    watches[0]._hub.kill()
    watches[0]._hub.communicate()
    printed = ""
    ends = time.monotonic() + 20
    while "ended unexpectedly: should a rank be lost, the job would hang" not in printed:
        assert time.monotonic() < ends, printed
        time.sleep(0.02)
        printed += capfd.readouterr().err
    for watch in watches.values():
        watch.note("epoch 2", starting=False)
    time.sleep(0.5)
    printed += capfd.readouterr().err
    assert printed.count(f"warning: the hub of the watchdog on {host} ended") == 1
    assert printed.count("warning: ") == 1
