"""Checkpoints of a run: rank 0 writes them for all ranks at a step boundary and keeps the newest ones.

One file holds the state of all ranks. An array that is equal on all ranks is stored once. Of the others
(optimizer slots, when weights are averaged) rank 0 receives and writes one at a time. Only rank 0 needs
access to the folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mpi_train.runs import checkpoint_file
from mpi_train.runs.checkpoint_file import CheckpointFile, Entry
from mpi_train.runs.record import EpochRecord
from mpi_train.runtime.errors import DataError, UsageError
from mpi_train.runtime.files import digest
from mpi_train.runtime.world import World
from mpi_train.training.steps import Segment
from mpi_train.training.totals import EpochTotals

FOLDER = "checkpoints"
KEPT = 3
"""Number of checkpoints of a run that are kept: the newest ones."""

Arrays = dict[str, np.ndarray]

# Versions before safetensors wrote .ckpt: listed as well, so that they are refused rather than ignored.
_NAME = re.compile(r"epoch-(\d{4,})-step-(\d{7,})\.(safetensors|ckpt)")


@dataclass(frozen=True, kw_only=True)
class Position:
    """Progress of a run between two steps.

    Attributes:
        epoch: Epoch that comes next or is in progress, counted from 1.
        segments, so_far: Completed part of that epoch, and its totals.
        epochs: Records of the epochs before it.
        history: Resumptions and rollbacks, as in ``RunRecord``.
    """

    epoch: int = 1
    segments: tuple[Segment, ...] = ()
    so_far: EpochTotals = field(default_factory=EpochTotals)
    epochs: tuple[EpochRecord, ...] = ()
    history: tuple[dict[str, Any], ...] = ()

    @property
    def step(self) -> int:
        """Number of completed steps of the epoch."""
        return sum(segment.num_steps for segment in self.segments)


@dataclass(frozen=True)
class _State:
    """State in a checkpoint file: progress, number of ranks that wrote it, and settings of the run."""

    position: Position
    size: int
    work: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """Checkpoint that ``size`` ranks wrote into ``path``, with the state of this rank in ``arrays``."""

    position: Position
    size: int
    path: Path
    arrays: Arrays = field(default_factory=dict)


class Checkpoints:
    """Checkpoints in the output folder of a run.

    Args:
        out, world: Output folder, and all ranks.
        work: Settings that must be equal for a run to resume from a checkpoint; JSON.
        warn: Function that shows a warning to the user.

    Attributes:
        folder, seconds: Folder of the checkpoints, and time spent in writing.
    """

    def __init__(
        self, out: Path, world: World, work: dict[str, Any], warn: Callable[[str], None] = print
    ) -> None:
        self.folder = out / FOLDER
        self._world, self._work, self._warn = world, json.loads(json.dumps(work)), warn
        self.seconds = 0.0

    def save(self, position: Position, arrays: Arrays) -> bool:
        """Write a checkpoint and remove the oldest ones, on all ranks together; return True if written.

        A disk error does not end the run: the user is warned, and the previous checkpoints stay.
        """
        begin = time.perf_counter()
        world = self._world
        everyone = world.gather_all(
            {name: (digest([array]), Entry.of(name, None, array)) for name, array in arrays.items()}
        )
        shared = sorted(name for name in arrays if len({theirs[name] for theirs in everyone}) == 1)
        own = [name for name in arrays if name not in shared]
        entries = [everyone[0][name][1] for name in shared]
        for rank, theirs in enumerate(everyone):
            entries += [theirs[name][1]._replace(rank=rank) for name in own]
        problem: str | None = None
        if world.is_root:
            problem = self._write(position, arrays, entries)
        else:
            for name in own:
                world.send(arrays[name], to=0)
        problem = world.gather_all(problem)[0]
        if problem is not None and world.is_root:
            self._warn(f"no checkpoint of epoch {position.epoch}, step {position.step}: {problem}")
        self.seconds += time.perf_counter() - begin
        return problem is None

    def _write(self, position: Position, arrays: Arrays, entries: Sequence[Entry]) -> str | None:
        """Write the arrays of the root and those that the other ranks send. Return the error, if any."""
        world = self._world
        path = self.folder / f"epoch-{position.epoch:04}-step-{position.step:07}.safetensors"
        state = dataclasses.asdict(_State(position, world.size, self._work))
        incoming = (
            world.receive(np.empty(entry.shape, entry.dtype), source=entry.rank)
            if entry.rank
            else arrays[entry.name]
            for entry in entries
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in [*list(_listed(self.folder))[KEPT - 1 :], *self.folder.glob(".*.tmp")]:
                _remove(old)
            checkpoint_file.write(path, state, entries, incoming)
        except OSError as error:
            for _ in incoming:  # the other ranks wait until their arrays are received
                pass
            text = f"{self.folder}: {error.strerror}"
            with suppress(OSError):
                free = shutil.disk_usage(self.folder if self.folder.exists() else self.folder.parent).free
                needed = sum(entry.num_bytes for entry in entries)
                text += f" ({needed / 2**20:.1f} MiB needed, {free / 2**20:.1f} MiB free)"
            return text
        # The name must survive a power failure too. Some file systems cannot sync a folder.
        with suppress(OSError):
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return None

    def find(self, resume: str) -> Snapshot | None:
        """Read the checkpoint to resume from, or return None to start a new run; on all ranks together.

        Args:
            resume: ``auto`` for the newest usable checkpoint, ``never``, or the path of a checkpoint.

        Raises:
            UsageError: The checkpoint belongs to a run with other settings, or ``never`` cannot remove the
                old checkpoints.
            DataError: The named checkpoint, or every one in the folder, is damaged.
        """
        world = self._world
        file: CheckpointFile | None = None
        found: Snapshot | None = None
        with world.together():
            if world.is_root and (opened := self._find(resume)):
                file, found = opened
        found = world.gather_all(found)[0]
        if found is None:
            return None
        arrays: Arrays = {}
        problem: DataError | None = None
        if file is None:
            arrays = world.receive_object(source=0)
        else:
            # The root holds the arrays of one rank at a time. An error is raised after the loop, because
            # the other ranks wait for their arrays.
            for rank in reversed(range(world.size)):
                try:
                    arrays = {name: _read(file, name, rank, found.size, world.size) for name in file.owners}
                except DataError as error:
                    arrays, problem = {}, error
                if rank > 0:
                    world.send_object(arrays, to=rank)
        with world.together():
            if problem is not None:
                raise problem
        return dataclasses.replace(found, arrays=arrays)

    def forget_after(self, position: Position) -> None:
        """Remove the checkpoints later than ``position``, where the run resumes; on the root.

        Otherwise ``auto`` would later choose one of an abandoned continuation, or a damaged one.
        """
        if self._world.is_root:
            for path, (epoch, step) in _listed(self.folder).items():
                if (epoch, step) > (position.epoch, position.step):
                    _remove(path)

    def _find(self, resume: str) -> tuple[CheckpointFile, Snapshot] | None:
        if resume == "never":
            try:
                for path in [*_listed(self.folder), *self.folder.glob(".*.tmp")]:
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise UsageError(
                    f"--resume never: {self.folder} cannot be emptied: {error.strerror}",
                    remedy="--out with another folder",
                ) from error
            return None
        if resume != "auto":
            return self._open(Path(resume))
        refused: list[DataError] = []
        for path in _listed(self.folder):
            try:
                return self._open(path)
            except DataError as error:
                refused.append(error)
                self._warn(f"skipped: {error.message}")
        if refused:
            raise DataError(
                f"no checkpoint in {self.folder} is usable. {refused[0].message}",
                remedy=refused[0].remedy or "--resume never, which starts a new run and removes them",
            )
        return None

    def _open(self, path: Path) -> tuple[CheckpointFile, Snapshot]:
        """Open a checkpoint and check that it fits this run."""
        file = CheckpointFile(path)
        try:
            state = msgspec.convert(file.state, _State, strict=False)
            position = state.position
            if state.size < 1 or position.epoch < 1 or len(position.epochs) != position.epoch - 1:
                raise ValueError(f"size {state.size}, epoch {position.epoch} after {len(position.epochs)}")
            if any(segment.size < 1 or segment.num_steps < 0 for segment in position.segments):
                raise ValueError(f"segments {position.segments}")
            for name, owners in file.owners.items():
                if owners not in ({None}, set(range(state.size))):
                    raise ValueError(f"{name} of {len(owners)} ranks instead of {state.size}")
        except ValueError as error:
            raise DataError(f"{path}: expected a run's checkpoint. Got: {error}"[:300]) from error
        for name, expected in self._work.items():
            # A setting that is unknown to the version that wrote the checkpoint counts as unset.
            if ((written := state.work.get(name)) or None) != (expected or None):
                raise UsageError(
                    f"{path} belongs to a run with other settings: {name} is {written} in the checkpoint, "
                    f"{expected} in this run",
                    remedy="--resume never, which starts a new run and removes it, or --out with another "
                    "folder",
                )
        return file, Snapshot(position, state.size, path)


def work_of(out: Path, resume: str) -> dict[str, Any]:
    """Read the settings of the run to resume, before they are compared; empty if there is no checkpoint.

    Arguments are those of ``Checkpoints`` and of its ``find``.
    """
    if resume != "never":
        for path in _listed(out / FOLDER) if resume == "auto" else [Path(resume)]:
            with suppress(DataError, KeyError, TypeError, ValueError):
                return dict(CheckpointFile(path).state["work"])
    return {}


def _listed(folder: Path) -> dict[Path, tuple[int, int]]:
    """List the checkpoints in a folder with their epochs and steps, the newest first."""
    found = {
        path: (int(match[1]), int(match[2]), match[3])
        for path in folder.glob("epoch-*")
        if (match := _NAME.fullmatch(path.name))
    }
    return {path: found[path][:2] for path in sorted(found, key=found.__getitem__, reverse=True)}


def _read(file: CheckpointFile, name: str, rank: int, old_size: int, size: int) -> np.ndarray:
    """Read an array of ``rank``; on another number of ranks the mean of all ranks' arrays."""
    if size == old_size:
        return file.read(name, rank)
    first = file.read(name, 0)
    if first.dtype.kind != "f":
        return first
    total = first.astype(np.float64)
    for other in range(1, old_size):
        total += file.read(name, other)
    return np.asarray(total / old_size, first.dtype)


def _remove(path: Path) -> None:
    """Remove a file that may stay if the disk refuses."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
