"""What can go wrong that is not a bug, and the exit code that stands for it.

A ``JobError`` carries a message for the user (what was expected, what came) and, where there is
one, the command that mends it. ``mpi_train.cli`` prints it once and exits with its code; any other
exception is a bug and keeps its traceback.
"""

from __future__ import annotations

from pathlib import Path

EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_PLATFORM = 4
EXIT_DIVERGED = 5
EXIT_RANK_LOST = 6
EXIT_RUN_AGAIN = 75


class JobError(Exception):
    """A failure to explain to the user, with an exit code and a way out.

    Args:
        message: What was expected and what was received.
        remedy: The command, or the one change, that mends it.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel between ranks; the default protocol would lose the keyword argument.
        return (_rebuild, (type(self), self.message, self.remedy))

    def __str__(self) -> str:
        return self.message if self.remedy is None else f"{self.message}\n  Fix: {self.remedy}"


def _rebuild(kind: type[JobError], message: str, remedy: str | None) -> JobError:
    return kind(message, remedy=remedy)


class UsageError(JobError):
    """A flag, a configuration or an output folder that cannot work."""

    exit_code = EXIT_USAGE


class DataError(JobError):
    """Data that is missing, corrupt or not what its manifest says."""

    exit_code = EXIT_DATA


class PlatformError(JobError):
    """MPI, Slurm or the devices are not what the job needs."""

    exit_code = EXIT_PLATFORM


class RankLostError(JobError):
    """A rank died, or has not been heard of for too long."""

    exit_code = EXIT_RANK_LOST


class RunAgainError(JobError):
    """The run was asked to stop, and has saved where it was."""

    exit_code = EXIT_RUN_AGAIN


class DivergedError(JobError):
    """The loss or the weights became NaN or infinite, or the ranks' weights went apart."""

    exit_code = EXIT_DIVERGED


class RanksApartError(DivergedError):
    """The ranks' weights went apart: no fault of the training's, which a smaller rate could mend."""


def unwritable(out: Path, error: OSError) -> UsageError:
    """What to raise where the folder of ``--out`` refuses a file."""
    return UsageError(
        f"--out: expected a folder that can be written. Got: {out} ({error.strerror})",
        remedy="--out with another folder",
    )
