"""Saving, stopping, resuming and rolling back a run, decided between two steps, the same on all ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn, Protocol

import numpy as np

from mpi_train.monitor import timeline
from mpi_train.runs import folder
from mpi_train.runs.checkpoints import Arrays, Checkpoints, Position, Snapshot
from mpi_train.runs.coordinator import Coordinator
from mpi_train.runs.record import EpochRecord
from mpi_train.runs.run import Run
from mpi_train.runtime import watchdog
from mpi_train.runtime.errors import DivergedError, RanksApartError, RunAgainError, UsageError
from mpi_train.runtime.flags import identity
from mpi_train.runtime.world import World
from mpi_train.training.evaluation import Scores
from mpi_train.training.loop import Chunk, ChunkCallback
from mpi_train.training.steps import Segment
from mpi_train.training.totals import EpochTotals

MAX_ROLLBACKS = 3
EXCHANGE = "averaging/"
"""Prefix of the names of arrays that last from one exchange to the next."""


class State(Protocol):
    """Everything of a strategy that a checkpoint must hold to resume it."""

    def arrays(self) -> Arrays:
        """Return copies of weights, optimizer variables and other state of the model, by name."""

    def restore(self, arrays: Arrays, *, same_size: bool) -> None:
        """Load the arrays of this rank or, after a change of the number of ranks, the mean over ranks."""

    def slow_down(self) -> float:
        """Halve the learning rate and return it."""


class ResumableRun(ChunkCallback):
    """A run that can be interrupted at any step and resumed.

    Args:
        run, state: The frame, and everything that is trained.
        layout: Further values, as JSON can hold them, that a checkpoint must have in common with this run to
            be resumed, besides the options of the config that identify it.
        save_at_start: True to write a checkpoint before the first step.
    """

    def __init__(
        self, run: Run, state: State, layout: dict[str, Any] | None = None, *, save_at_start: bool = False
    ) -> None:
        config = run.config
        self.run, self.state = run, state
        self.position = Position()
        self._before = EpochTotals()
        self._written = True
        self._save_at_start = save_at_start or config.on_nan == "rollback"
        self.coordinator = Coordinator(
            run.world, every_steps=config.checkpoint_every, every_s=60 * config.checkpoint_minutes
        )
        self.checkpoints = Checkpoints(
            run.out, run.world, {**_identity(run), **(layout or {})}, run.progress.warn
        )

    def begin(self) -> None:
        """Resume the interrupted run of the folder, or begin a new one. Everything is built and traced.

        Raises:
            UsageError, DataError: as ``Checkpoints.find``. Raised on all ranks.
        """
        run = self.run
        resume = run.config.resume
        # auto resumes interrupted runs; a finished run has left its record.
        if resume == "auto" and run.world.gather_all(run.is_finished)[0]:
            resume = "never"
        found = self.checkpoints.find(resume)
        if found is None:
            run.begin()
            if self._save_at_start:
                self.save()
            return
        position, last = found.position, run.config.epochs
        if (position.epoch, position.step) > (last + 1, 0):
            raise UsageError(
                f"--epochs: {found.path} is beyond {last} epochs. Got: --epochs {last}",
                remedy="--resume never, which starts anew and removes it, or --out with another folder",
            )
        self._restore(found)
        # A finished run, and a checkpoint of another folder, stay as they are: this is a new run.
        ours = not run.is_finished and found.path.resolve().parent == self.checkpoints.folder.resolve()
        ours = run.world.gather_all(ours)[0]  # only the root need see the folder, and saving is collective
        run.begin(position.epochs, anew=not ours)
        self.checkpoints.forget_after(position)
        self.position = _with_event(position, "resumed", world_size=run.world.size)
        size = f", then on {found.size} ranks and now on {run.world.size}"
        run.progress.say(
            f"resumed: {found.path}, after epoch {position.epoch - 1} and {position.step} steps"
            + ("" if found.size == run.world.size else size),
            "resumed",
            checkpoint=str(found.path),
            epoch=position.epoch,
            step=position.step,
        )
        run.event("resumed", found.path.name, epoch_num=position.epoch)
        if self._save_at_start and not ours:  # this folder has no checkpoint yet
            self.save()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Let signals stop the run at the next step boundary; at the end, write the timeline."""
        run = self.run
        try:
            with self.coordinator.listening(), timeline.kept(run.out / folder.TRACE, run.progress.say):
                yield
        except BaseException as error:
            run.progress.leave("stopped" if isinstance(error, RunAgainError) else "failed")
            raise
        run.progress.end()

    # ---- Within an epoch --------------------------------------------------------------------------------

    def rest_of_epoch(self) -> tuple[tuple[Segment, ...], int]:
        """Return the finished segments of the epoch, and the number of finished steps of the present one."""
        segments, size = self.position.segments, self.run.replicas.size
        if segments and segments[-1].size == size:
            return segments[:-1], segments[-1].num_steps
        return segments, 0

    def begin_epoch(self, num_steps: int) -> None:
        """Begin an epoch of ``num_steps`` steps, or the rest of one."""
        self._before = self.position.so_far
        self.run.begin_epoch(self.position.epoch, num_steps)
        if self.position.step:
            self.run.progress.advance(self.position.step)

    @property
    def _offset(self) -> int:
        """Number of steps of the epoch in finished segments."""
        return sum(segment.num_steps for segment in self.rest_of_epoch()[0])

    def limit(self, first: int, stop: int) -> int:
        """Return the end of a chunk; see ``ChunkCallback``."""
        end = self.coordinator.limit(self._offset + first, self._offset + stop)
        watchdog.note(
            f"epoch {self.position.epoch}, training, between step {self._offset + first + 1} and {end}"
        )
        return end - self._offset

    def after(self, chunk: Chunk, world: World) -> tuple[float, bool]:
        """Agree on what follows a chunk; see ``ChunkCallback``.

        Raises:
            DivergedError: the loss or the weights are not finite on some rank. Raised on all ranks.
        """
        first, stop = self._offset + chunk.first, self._offset + chunk.stop
        decision = self.coordinator.agree(replace(chunk, first=first, stop=stop))
        if decision.diverged:
            raise self._diverged(first, stop, finite=chunk.finite)
        self.run.progress.advance(stop, decision.by_rank)
        return decision.slowest_s, decision.stop or decision.save

    def pause(self, step: int, so_far: EpochTotals) -> None:
        """Save within an epoch, and leave if the run is to stop; see ``ChunkCallback``.

        Raises:
            RunAgainError: the run is to stop. Raised on all ranks.
        """
        segments = (*self.rest_of_epoch()[0], Segment(self.run.replicas.size, step))
        self.position = replace(self.position, segments=segments, so_far=self._before + so_far)
        self._save_or_leave()

    def end_epoch(self, rest: EpochTotals, evaluate: Callable[[], Scores], **options: Any) -> EpochRecord:
        """Evaluate, record and save an epoch; leave if the run is to stop and has epochs left.

        Arguments are those of ``Run.end_epoch``, with the totals of the epoch in this process.

        Raises:
            DivergedError: as ``Run.end_epoch``.
            RunAgainError: as ``pause``.
        """
        before = self.position
        record = self.run.end_epoch(before.epoch, self._before + rest, evaluate, **options)
        self.position = Position(
            epoch=before.epoch + 1, epochs=(*before.epochs, record), history=before.history
        )
        if record.epoch == self.run.config.epochs:
            self.save()
        else:
            self._save_or_leave()
        return record

    def _diverged(self, first: int, stop: int, *, finite: bool) -> DivergedError:
        """Return the error for values that are not finite after the steps ``first`` to ``stop``."""
        world = self.run.world
        hosts = zip(world.hosts, world.gather_all(finite), strict=True)
        where = [f"rank {rank} on {host}" for rank, (host, sound) in enumerate(hosts) if not sound]
        return DivergedError(
            f"epoch {self.position.epoch}, between step {first + 1} and {stop}: the loss or the weights "
            f"became NaN or infinite on {', '.join(where)}. The last checkpoint is kept",
            remedy="a smaller --learning-rate, or --on-nan rollback",
        )

    def roll_back(self, error: DivergedError) -> None:
        """Return to the last checkpoint with half the learning rate, or raise ``error`` again."""
        run = self.run
        history = self.position.history
        if (
            run.config.on_nan != "rollback"
            or isinstance(error, RanksApartError)
            or len(_rollbacks(history)) >= MAX_ROLLBACKS
        ):
            raise error
        found = self.checkpoints.find("auto")
        if found is None:
            raise error
        self._restore(found)
        position = found.position
        self.checkpoints.forget_after(position)
        # The checkpoint holds the learning rate after its own rollbacks; halve it once for each later one.
        times = 1 + len(_rollbacks(history)) - len(_rollbacks(position.history))
        rate = [self.state.slow_down() for _ in range(times)][-1]
        self.position = _with_event(replace(position, history=history), "rolled back", learning_rate=rate)
        run.progress.warn(error.message)
        run.rewind(position.epochs)
        run.progress.say(
            f"rolled back: to {found.path.name}, learning rate now {rate:g}",
            "rolled_back",
            checkpoint=str(found.path),
            learning_rate=rate,
        )

    # ---- Saving -----------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint, on all ranks together."""
        watchdog.note(f"epoch {self.position.epoch}, writing a checkpoint")
        with timeline.phase("checkpoint"):
            self._written = self.checkpoints.save(self.position, self.state.arrays())
        self.coordinator.saved()

    def _save_or_leave(self) -> None:
        self.save()
        if self.coordinator.stopping:
            self.leave()

    def leave(self) -> NoReturn:
        """Leave without saving, to resume from the last checkpoint.

        Raises:
            RunAgainError: always, on all ranks.
        """
        run, position = self.run, self.position
        reasons = [reason for reason in run.world.gather_all(self.coordinator.reason) if reason]
        stopped = f"stopped by {reasons[0]} in epoch {position.epoch}, {position.step} steps done"
        run.event("run_stop", status="aborted")
        if not self._written:
            raise UsageError(f"{stopped}, and could not save", remedy="see above")
        raise RunAgainError(
            f"{stopped}; saved in {self.checkpoints.folder}",
            remedy="run the same command again, which resumes from there"
            + ("" if run.config.resume == "auto" else ", with --resume auto"),
        )

    def _restore(self, found: Snapshot) -> None:
        same_size = found.size == self.run.world.size
        with self.run.world.together():
            here = {name: array.shape for name, array in self.state.arrays().items()}
            there = {name: array.shape for name, array in found.arrays.items()}
            apart = {name for name in here.keys() | there.keys() if here.get(name) != there.get(name)}
            # A single rank exchanges nothing, and has no such arrays.
            if not same_size:
                apart -= {name for name in here.keys() ^ there.keys() if name.startswith(EXCHANGE)}
            if apart:
                raise UsageError(
                    f"expected a checkpoint of this model and optimizer. Got: another {min(apart)}",
                    remedy="--resume never, or --out with another folder",
                )
        self.state.restore(found.arrays, same_size=same_size)


def _with_event(position: Position, kind: str, **facts: object) -> Position:
    """Return ``position`` with one more event in its history."""
    event = {"kind": kind, "epoch": position.epoch, "step": position.step, **facts}
    return replace(position, history=(*position.history, event))


def _rollbacks(history: tuple[dict[str, object], ...]) -> list[dict[str, object]]:
    return [event for event in history if event["kind"] == "rolled back"]


def _identity(run: Run) -> dict[str, object]:
    """Return everything that two runs must have in common for one to resume the other's checkpoint."""
    # The same data cut into other shards has another order.
    splits = run.shards.manifest.splits.values()
    shards = hashlib.sha256("".join(file.sha256 for split in splits for file in split.files).encode())
    return {"strategy": run.strategy, **identity(run.config), "shards_sha256": shards.hexdigest()}


def copies(variables: dict[str, Any]) -> Arrays:
    """Copy variables of TensorFlow or Keras to arrays, by name."""
    return {name: np.array(variable.numpy()) for name, variable in variables.items()}
