"""The checkpoints of a run: written by rank 0, for all ranks, at a step boundary; the last few kept.

One file has the state of all ranks, and takes its name when it is whole, so that there is never half a
checkpoint. Where all ranks have the same array it is written once; where they do not (the optimizer's
slots, when weights are averaged) rank after rank hands over its own. No other rank needs the folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpi_train.runs import checkpoint_file as files
from mpi_train.runs.checkpoint_file import CheckpointFile, Entry
from mpi_train.runs.record import EpochRecord
from mpi_train.runtime.digest import digest
from mpi_train.runtime.errors import DataError, UsageError
from mpi_train.runtime.world import World
from mpi_train.training.steps import Segment
from mpi_train.training.totals import EpochTotals, RankTimes

FOLDER = "checkpoints"
KEPT = 3
"""Checkpoints of a run that are kept: the newest ones."""

Arrays = dict[str, np.ndarray]

_NAME = re.compile(r"epoch-(\d{4,})-step-(\d{7,})\.ckpt")


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where in its training a run is: between two steps.

    Attributes:
        epoch: The one that comes or is under way, counted from 1.
        segments: What was done of it.
        so_far: What that came to.
        epochs: Records of those before it.
        history: What happened to the run: resumptions and rollbacks, as ``RunRecord`` has them.
    """

    epoch: int = 1
    segments: tuple[Segment, ...] = ()
    so_far: EpochTotals = field(default_factory=EpochTotals)
    epochs: tuple[EpochRecord, ...] = ()
    history: tuple[dict[str, Any], ...] = ()

    @property
    def step(self) -> int:
        """Steps of the epoch that are done."""
        return sum(segment.num_steps for segment in self.segments)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Position:
        """The inverse of ``as_json``.

        Raises:
            KeyError, TypeError, ValueError: it is not what that returns.
        """
        so_far = {**raw["so_far"], "by_rank": [RankTimes(**rank) for rank in raw["so_far"]["by_rank"]]}
        position = cls(
            epoch=int(raw["epoch"]),
            segments=tuple(
                Segment(int(segment["size"]), int(segment["num_steps"])) for segment in raw["segments"]
            ),
            so_far=EpochTotals(**so_far),
            epochs=tuple(EpochRecord.from_json(epoch) for epoch in raw["epochs"]),
            history=tuple(raw["history"]),
        )
        if position.epoch < 1 or len(position.epochs) != position.epoch - 1:
            raise ValueError(f"epoch {position.epoch} after {len(position.epochs)}")
        if any(segment.size < 1 or segment.num_steps < 0 for segment in position.segments):
            raise ValueError(f"segments {position.segments}")
        return position


@dataclass(frozen=True)
class Snapshot:
    """A run at a step boundary, as this rank sees it.

    Attributes:
        position: Where it is.
        arrays: What this rank needs to go on.
        size: Number of ranks that it was written by.
        path: The file it came from.
    """

    position: Position
    arrays: Arrays
    size: int
    path: Path


class Checkpoints:
    """The checkpoints below a run's folder.

    Args:
        out: The run's folder.
        world: The ranks.
        work: What a run must have in common with this one to be gone on with; JSON.
        warn: Shows a warning to the user.

    Attributes:
        seconds: Spent in writing so far.
    """

    def __init__(
        self, out: Path, world: World, work: dict[str, Any], warn: Callable[[str], None] = print
    ) -> None:
        self.folder = out / FOLDER
        self._world, self._work, self._warn = world, json.loads(json.dumps(work)), warn
        self.seconds = 0.0

    def save(self, position: Position, arrays: Arrays) -> bool:
        """Writes a checkpoint and removes those that are too old. On all ranks together.

        A disk that refuses does not end the run: it is said, and the older checkpoints stay.

        Returns:
            Whether it was written; the same on all ranks.
        """
        begin = time.perf_counter()
        world = self._world
        everyone = world.gather_all(
            {name: (digest([array]), Entry.of(name, world.rank, array)) for name, array in arrays.items()}
        )
        common = {name for name in arrays if len({rank[name][0] for rank in everyone}) == 1}
        own = [name for name in arrays if name not in common]
        entries = [Entry.of(name, None, arrays[name]) for name in sorted(common)]
        entries += [rank[name][1] for rank in everyone for name in own]
        path = self.folder / f"epoch-{position.epoch:04}-step-{position.step:07}.ckpt"
        problem: str | None = None
        if world.is_root:
            problem = self._write(path, position, arrays, entries)
        else:
            for name in own:
                world.send(arrays[name], to=0)
        problem = world.gather_all(problem)[0]
        if problem is not None and world.is_root:
            self._warn(f"no checkpoint of epoch {position.epoch}, step {position.step}: {problem}")
        self.seconds += time.perf_counter() - begin
        return problem is None

    def find(self, resume: str) -> Snapshot | None:
        """The checkpoint to go on from, or None to start anew. On all ranks together.

        Args:
            resume: ``auto`` for the newest one that is whole, ``never``, or the path of one.

        Raises:
            UsageError: it is another run's, or ``never`` was said and the old ones cannot be removed.
            DataError: the one that was named, or every one there is, is not whole.
        """
        world = self._world
        found: tuple[CheckpointFile, Position] | None = None
        with world.together():
            if world.is_root:
                found = self._find(resume)
        if not world.gather_all(found is not None)[0]:
            return None
        return self._deal_out(found)

    def forget_after(self, position: Position) -> None:
        """Removes what is later than ``position``, from where the run now goes on; on the root.

        Otherwise the newest by name would be of a run that was given up, or a damaged one.
        """
        if self._world.is_root:
            for path in _listed(self.folder):
                match = _NAME.fullmatch(path.name)
                if match and (int(match[1]), int(match[2])) > (position.epoch, position.step):
                    _remove(path)

    def clear(self) -> None:
        """Removes all checkpoints of the run; on the root."""
        if self._world.is_root:
            for path in _listed(self.folder):
                path.unlink(missing_ok=True)
            for path in self.folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)

    def _write(self, path: Path, position: Position, arrays: Arrays, entries: Sequence[Entry]) -> str | None:
        """Writes what the root has and what the other ranks send; what went wrong, if anything did."""
        world = self._world
        state = {"position": position.as_json(), "size": world.size, "work": self._work}

        def all_arrays() -> Iterator[np.ndarray]:
            for entry in entries:
                if entry.rank:
                    yield world.receive(np.empty(entry.shape, entry.dtype), source=entry.rank)
                else:
                    yield arrays[entry.name]

        coming = all_arrays()
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in [*_listed(self.folder)[KEPT - 1 :], *self.folder.glob(".*.tmp")]:
                _remove(old)
            files.write(temporary, state, list(entries), coming)
            os.replace(temporary, path)
        except OSError as error:
            for _ in coming:  # what the others are sending must be taken
                pass
            _remove(temporary)
            return self._explained(error, files.num_bytes(state, entries))
        # The name too must outlive a loss of power; some file systems have no sync of folders.
        with suppress(OSError):
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return None

    def _explained(self, error: OSError, needed: int) -> str:
        text = f"{self.folder}: {error.strerror}"
        try:
            free = shutil.disk_usage(self.folder if self.folder.exists() else self.folder.parent).free
        except OSError:
            return text
        return f"{text} ({needed / 2**20:.1f} MiB needed, {free / 2**20:.1f} MiB free)"

    def _find(self, resume: str) -> tuple[CheckpointFile, Position] | None:
        if resume == "never":
            try:
                self.clear()
            except OSError as error:
                raise UsageError(
                    f"--resume never: {self.folder} cannot be emptied: {error.strerror}",
                    remedy="--out with another folder",
                ) from error
            return None
        if resume != "auto":
            return self._open(Path(resume))
        refused: list[str] = []
        for path in _listed(self.folder):
            try:
                found = self._open(path)
            except DataError as error:
                refused.append(error.message)
                self._warn(f"passed over: {error.message}")
                continue
            return found
        if refused:
            raise DataError(
                f"no checkpoint in {self.folder} is whole. {refused[0]}",
                remedy="--resume never, which starts anew and removes them",
            )
        return None

    def _open(self, path: Path) -> tuple[CheckpointFile, Position]:
        file = CheckpointFile(path)
        try:
            position, work = Position.from_json(file.state["position"]), dict(file.state["work"])
            size = file.state["size"]
            if type(size) is not int or size < 1:
                raise ValueError(f"size {size}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: expected a run's checkpoint. Got: {error!r}"[:300]) from error
        for name, expected in self._work.items():
            # What an older version did not write down, it did not have.
            if (work.get(name) or None) != (expected or None):
                raise UsageError(
                    f"{path} is of another run: {name} is {work.get(name)} there, and {expected} here",
                    remedy="--resume never, which starts anew and removes it, or --out with another folder",
                )
        return file, position

    def _deal_out(self, found: tuple[CheckpointFile, Position] | None) -> Snapshot:
        """Hands every rank its arrays. The root alone has ``found``."""
        world = self._world
        head = None
        if found is not None:
            file, position = found
            names = list(dict.fromkeys(entry.name for entry in file.entries))
            head = (position, names, int(file.state["size"]), file.path)
        head = world.gather_all(head)[0]
        assert head is not None
        position, names, size, path = head
        arrays: Arrays = {}
        with world.together():
            if found is not None:
                self._check_ranks(found[0], size)
        # Rank by rank, so that the root holds no more than one rank's arrays beside its own. What it cannot
        # read is told after that: the others wait for their arrays until then.
        problem: DataError | None = None
        for rank in range(world.size):
            if found is not None:
                theirs: Arrays = {}
                try:
                    theirs = {name: _for_rank(found[0], name, rank, size, world.size) for name in names}
                except DataError as error:
                    problem = error
                if rank == 0:
                    arrays = theirs
                else:
                    world.send_object(theirs, to=rank)
            elif rank == world.rank:
                arrays = world.receive_object(source=0)
        with world.together():
            if problem is not None:
                raise problem
        return Snapshot(position, arrays, size, path)

    @staticmethod
    def _check_ranks(file: CheckpointFile, size: int) -> None:
        by_name: dict[str, set[int | None]] = {}
        for entry in file.entries:
            by_name.setdefault(entry.name, set()).add(entry.rank)
        for name, ranks in by_name.items():
            if ranks != {None} and ranks != set(range(size)):
                raise DataError(f"{file.path}: expected {name} of {size} ranks. Got: {len(ranks)}")


def work_of(out: Path, resume: str) -> dict[str, Any]:
    """What the checkpoint to go on from says of its run, before that is compared; empty where there is none.

    Args:
        out, resume: As for ``Checkpoints`` and its ``find``.
    """
    named = {"auto": _listed(out / FOLDER), "never": []}
    for path in named.get(resume, [Path(resume)]):
        with suppress(DataError, KeyError, TypeError, ValueError):
            return dict(CheckpointFile(path).state["work"])
    return {}


def _listed(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    found.sort(key=lambda pair: (int(pair[0][1]), int(pair[0][2])), reverse=True)
    return [path for _, path in found]


def _for_rank(file: CheckpointFile, name: str, rank: int, old_size: int, size: int) -> np.ndarray:
    """What ``rank`` goes on with: its own; on another number of ranks the mean of all."""
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
    """Removes a file that is in nobody's way if it stays."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
