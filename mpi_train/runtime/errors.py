"""Errors that are not bugs, and the exit code of each.

A ``JobError`` has a message for the user (what was expected, what was received) and, if there is one, the
command that fixes it. ``mpi_train.runs.job.guarded`` prints it once and exits with its code. Any other
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
    """Failure to explain to the user, with an exit code and a fix.

    Args:
        message: Expected and received values.
        remedy: Command, or the one change, that fixes it.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return self.message if self.remedy is None else f"{self.message}\n  Fix: {self.remedy}"


class UsageError(JobError):
    """Flag, configuration or output folder that cannot work."""

    exit_code = EXIT_USAGE


class DataError(JobError):
    """Data that is missing, corrupt, or different from its manifest."""

    exit_code = EXIT_DATA


class PlatformError(JobError):
    """MPI, Slurm or devices that the job cannot use."""

    exit_code = EXIT_PLATFORM


class RankLostError(JobError):
    """Rank that died, or has been silent for too long."""

    exit_code = EXIT_RANK_LOST


class RunAgainError(JobError):
    """Request to stop, after the run has saved a checkpoint."""

    exit_code = EXIT_RUN_AGAIN


class DivergedError(JobError):
    """Loss or weights that are NaN or infinite, or weights that differ between ranks."""

    exit_code = EXIT_DIVERGED


class RanksApartError(DivergedError):
    """Weights that differ between ranks, which a lower learning rate does not fix."""


def unwritable(out: Path, error: OSError) -> UsageError:
    """Return the error for a folder of ``--out`` that refuses a file."""
    return UsageError(
        f"--out: expected a folder that can be written. Got: {out} ({error.strerror})",
        remedy="--out with another folder",
    )
