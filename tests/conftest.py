"""What all tests share: ranks that agree on each verdict, one voice, a small data set.

Plain ``pytest`` is one process; ``mpiexec -n 2 pytest --with-mpi`` runs every test on every rank.
"""

from __future__ import annotations

import fcntl
import importlib.util
import io
import os
import pty
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpi_train.data.shards import ShardSet
from mpi_train.runtime import devices
from mpi_train.runtime import world as worlds
from mpi_train.runtime.world import World

WORLD = pytest.StashKey[World]()


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    with_mpi = config.getoption("--with-mpi") or config.getoption("--only-mpi")
    world = worlds.join() if with_mpi else World()
    config.stash[WORLD] = world
    devices.claim_cores(world, None)
    if not world.is_root:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        reporter._tw._file = io.StringIO()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("peers") and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed here; make test-peers makes an environment that has it")


def pytest_collection_finish(session: pytest.Session) -> None:
    # Two devices for the strategies that need several, before anything is placed on the first.
    tf = sys.modules.get("tensorflow")
    if tf is not None:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A test under MPI passes when it passes on every rank, and rank 0 shows why it did not."""
    report: pytest.TestReport = yield  # type: ignore[misc, assignment]
    world = item.config.stash[WORLD]
    # A rank that fails in the setup must take the others along, or they would wait for it in the call.
    if world.size > 1 and report.when in ("setup", "call"):
        texts = world.gather_all(report.longreprtext if report.failed else None)
        failed = [f"--- rank {rank} ---\n{text}" for rank, text in enumerate(texts) if text is not None]
        if failed:
            report.outcome = "failed"
            report.longrepr = "\n".join(failed)
    return report  # type: ignore[return-value]


@pytest.fixture(scope="session")
def world(request: pytest.FixtureRequest) -> World:
    """The ranks that run this test; one process without MPI under plain ``pytest``."""
    return request.config.stash[WORLD]


@pytest.fixture(scope="session")
def tiny_shards(world: World) -> Iterator[Path]:
    """A folder with 509 training and 131 test images of the stand-in, in 4 shards, seen by all ranks."""
    from mpi_train.data import synthetic
    from mpi_train.data.shards import write_shards

    folder = Path(tempfile.mkdtemp(prefix="mpi-train-")) if world.is_root else None
    folder = world.gather_all(folder)[0]
    assert folder is not None
    if world.is_root:
        write_shards(synthetic.draw(seed=1, num_train=509, num_test=131), folder, num_shards=4, seed=1)
    world.barrier()
    yield folder
    world.barrier()
    if world.is_root:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def tiny(tiny_shards: Path) -> ShardSet:
    return ShardSet.open(tiny_shards, "synthetic")


class Terminal:
    """A program under a pseudo-terminal, and what a terminal emulator makes of what it writes.

    Args:
        words: The program; it is started in the repository's root.
        columns: Width.

    Attributes:
        process: The program.
        written: Each piece that came from it. The terminal passes a write on whole.
        screen: As it is now.
        unbounded: The same on a screen on which nothing can wrap.
    """

    LINES = 24

    def __init__(self, words: list[str], columns: int) -> None:
        import pyte

        self.screen, self.unbounded = pyte.Screen(columns, self.LINES), pyte.Screen(1000, self.LINES)
        self._streams = [pyte.ByteStream(screen) for screen in (self.screen, self.unbounded)]
        for screen in (self.screen, self.unbounded):
            screen.set_mode(pyte.modes.LNM)
        self._own, theirs = pty.openpty()
        # A newline that the terminal had to translate would part a write.
        attributes = termios.tcgetattr(theirs)
        attributes[1] &= ~termios.OPOST
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        self.resize(columns)
        environ = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        environ |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
        self.process = subprocess.Popen(
            words, cwd=Path(__file__).parents[1], env=environ, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        self.written: list[bytes] = []

    def resize(self, columns: int) -> None:
        """As when its window is made narrower or wider."""
        fcntl.ioctl(self._own, termios.TIOCSWINSZ, struct.pack("HHHH", self.LINES, columns, 0, 0))
        self.screen.resize(self.LINES, columns)

    def enter(self) -> None:
        """Types a newline."""
        os.write(self._own, b"\n")

    def screens(self) -> Iterator[list[str]]:
        """The lines on the screen after each piece that is written, until the program has ended."""
        while True:
            try:
                piece = os.read(self._own, 1 << 16)
            except OSError:  # Linux has it so when the other end is closed
                break
            self.written.append(piece)
            for stream in self._streams:
                stream.feed(piece)
            yield self.lines
        os.close(self._own)
        self.process.wait()

    @property
    def lines(self) -> list[str]:
        """On the screen, but for those that are empty."""
        return [line.rstrip() for line in self.screen.display if line.strip()]


@pytest.fixture
def terminal() -> Iterator[type[Terminal]]:
    """Starts a program under a pseudo-terminal."""
    started: list[Terminal] = []

    class Started(Terminal):
        def __init__(self, words: list[str], columns: int) -> None:
            super().__init__(words, columns)
            started.append(self)

    yield Started
    for each in started:
        each.process.kill()
        each.process.wait()
