"""Programs that tests start: jobs as a user starts them, and programs under a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

from mpi_train.runtime import launch

ROOT = Path(__file__).parents[1]

INTERPRETERS = {"bash", "sh", "make", "mpiexec", "python", "python3"}
"""Programs that may start ranks or take long; the libraries start others, such as ``uname``, anywhere."""


def is_guarded(program: str) -> bool:
    """Tell whether only tests with the mark ``launches`` may start this program."""
    return os.path.basename(program) in INTERPRETERS or Path(program).is_relative_to(ROOT)


def start(job: str, *flags: str | Path, ranks: int = 1, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a job to its end, for at most two minutes; tests get this function from the fixture ``launch``."""
    words = [sys.executable, f"jobs/{job}.py", *map(str, flags)]
    if ranks > 1:
        words = launch.mpiexec(ranks, words)
    env = {**launch.environment(), **environ}
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)


def assert_one_message(result: subprocess.CompletedProcess[str], code: int, *texts: str) -> None:
    """Check that a job ended with ``code``, one error message that contains ``texts``, and no traceback."""
    output = result.stdout + result.stderr
    assert result.returncode == code, output
    assert "Traceback" not in output
    assert len(re.findall(r"^error: ", output, re.MULTILINE)) == 1, output
    for text in texts:
        assert text in output


class Terminal:
    """A program under a pseudo-terminal, and the screen that a terminal emulator makes of its output.

    Args:
        words: Command line of the program; it is started in the repository's root.
        columns: Width of the screen.

    Attributes:
        process: Program that was started.
        written: Pieces of output, one for each write of the program.
        screen: Screen as it is now.
        unbounded: Screen on which no line can wrap.
    """

    LINES = 24

    def __init__(self, words: list[str], columns: int) -> None:
        import pyte

        self.screen, self.unbounded = pyte.Screen(columns, self.LINES), pyte.Screen(1000, self.LINES)
        self._streams = [pyte.ByteStream(screen) for screen in (self.screen, self.unbounded)]
        for screen in (self.screen, self.unbounded):
            screen.set_mode(pyte.modes.LNM)
        self._own, theirs = pty.openpty()
        # A newline that the terminal had to translate would split a write.
        attributes = termios.tcgetattr(theirs)
        attributes[1] &= ~termios.OPOST
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        self.resize(columns)
        environ = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        environ |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
        self.process = subprocess.Popen(
            words, cwd=ROOT, env=environ, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        self.written: list[bytes] = []

    def resize(self, columns: int) -> None:
        """Make the window narrower or wider."""
        fcntl.ioctl(self._own, termios.TIOCSWINSZ, struct.pack("HHHH", self.LINES, columns, 0, 0))
        self.screen.resize(self.LINES, columns)

    def enter(self) -> None:
        """Type a newline."""
        os.write(self._own, b"\n")

    def screens(self) -> Iterator[list[str]]:
        """Yield the lines on the screen after each piece of output, until the program has ended."""
        while True:
            try:
                piece = os.read(self._own, 1 << 16)
            except OSError:  # Linux reports a closed other end like this
                break
            self.written.append(piece)
            for stream in self._streams:
                stream.feed(piece)
            yield self.lines
        os.close(self._own)
        self.process.wait()

    @property
    def lines(self) -> list[str]:
        """The lines on the screen that are not empty."""
        return [line.rstrip() for line in self.screen.display if line.strip()]
