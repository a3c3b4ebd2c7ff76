"""Errors that are not bugs, and the exit code of each.

A ``JobError`` has a message for the user (what was expected, what was received) and, if there is one, the
command that fixes it. ``mpi_train.runs.job.guarded`` prints it once and exits with its code. Any other
exception is a bug and keeps its traceback.
"""

from __future__ import annotations

from pathlib import Path


class JobError(Exception):
    """Failure to explain to the user, with the command or the one change (``remedy``) that fixes it."""

    exit_code = 1

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return self.message if self.remedy is None else f"{self.message}\n  Fix: {self.remedy}"


class UsageError(JobError):
    """Flag, configuration or output folder that cannot work."""

    exit_code = 2


class DataError(JobError):
    """Data that is missing, corrupt, or different from its manifest."""

    exit_code = 3


class PlatformError(JobError):
    """MPI, Slurm or devices that the job cannot use."""

    exit_code = 4


class RankLostError(JobError):
    """Rank that died, or has been silent for too long."""

    exit_code = 6


class RunAgainError(JobError):
    """Request to stop, after the run has saved a checkpoint."""

    exit_code = 75


class DivergedError(JobError):
    """Loss or weights that are NaN or infinite, or weights that differ between ranks."""

    exit_code = 5


class RanksApartError(DivergedError):
    """Weights that differ between ranks, which a lower learning rate does not fix."""


def unwritable(folder: Path, error: OSError, *, flag: str = "--out") -> UsageError:
    """Return the error for a folder, named by ``flag``, that refuses a file."""
    return UsageError(
        f"{flag}: expected a folder that can be written. Got: {folder} ({error.strerror})",
        remedy=f"{flag} with another folder",
    )


def expect(holds: bool, path: Path, expected: str, received: object) -> None:
    """Raise ``DataError`` for the file ``path`` unless ``holds``."""
    if not holds:
        raise DataError(f"{path}: expected {expected}. Got: {str(received)[:80]}")
