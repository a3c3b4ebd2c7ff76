"""A run that may be interrupted: where it is, what it has saved, and what becomes of it when asked to stop.

The strategies train; this decides, between two steps and the same on all ranks, when to save, when to
stop, and from where to go on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mpi_train.monitor import timeline
from mpi_train.runs import folder
from mpi_train.runs.checkpoints import Arrays, Checkpoints, Position
from mpi_train.runs.config import TrainConfig
from mpi_train.runs.coordinator import Control
from mpi_train.runs.record import EpochRecord, RunRecord
from mpi_train.runs.run import Run
from mpi_train.runtime import watchdog
from mpi_train.runtime.errors import DivergedError, RanksApartError, RunAgainError, UsageError
from mpi_train.runtime.world import World
from mpi_train.training.loop import Chunk, ChunkCallback
from mpi_train.training.steps import Leg
from mpi_train.training.totals import EpochTotals

if TYPE_CHECKING:
    import keras

MAX_ROLLBACKS = 3
EXCHANGE = "averaging/"
"""How the names of arrays begin that last from one exchange to the next."""


class State(Protocol):
    """What a strategy trains: all that must be known to go on with it."""

    def arrays(self) -> Arrays:
        """Copies of the weights, the optimizer's variables and the model's other state, by name."""

    def restore(self, arrays: Arrays, *, same_size: bool) -> None:
        """The inverse, with the arrays of this rank; or, after a change of size, with the ranks' mean."""

    def slow_down(self) -> float:
        """Halves the learning rate, and says what it is now."""


class Session(ChunkCallback):
    """Args:
        run: The frame.
        state: What is trained.
        work: What a run must have in common with this one to be gone on with, beside its settings; JSON.

    Attributes:
        position: Between which steps the run is.
        control: What the ranks agree on between chunks of steps.
    """

    def __init__(self, run: Run, state: State, work: dict[str, Any] | None = None) -> None:
        config, world = run.config, run.world
        self.run, self.state = run, state
        self.position = Position()
        self._closed: tuple[Leg, ...] = ()
        self._offset = 0
        self._before = EpochTotals()
        self._written = True
        self.control = Control(
            world, every_steps=config.checkpoint_every, every_s=60 * config.checkpoint_minutes
        )
        self.checkpoints = Checkpoints(run.out, world, {**_work(run), **(work or {})}, run.progress.warn)

    def begin(self) -> None:
        """Goes on where an interrupted run was, or starts anew; to be called when all is built and traced.

        Raises:
            UsageError, DataError: as ``Checkpoints.find``; on all ranks.
        """
        run = self.run
        # A run that came to its end has left its record; auto means to go on with one that has not.
        resume = run.config.resume
        if resume == "auto" and run.world.gather_all(run.is_finished)[0]:
            resume = "never"
        found = self.checkpoints.find(resume)
        if found is None:
            run.begin()
            if run.config.on_nan == "rollback":
                self.save()
            return
        same_size = found.size == run.world.size
        position = found.position
        last = run.config.epochs
        if (position.epoch, position.step) > (last + 1, 0):
            raise UsageError(
                f"--epochs: {found.path} is further than {last} epochs. Got: --epochs {last}",
                remedy="--resume never, which starts anew and removes it, or --out with another folder",
            )
        self._restore(found.arrays, same_size=same_size)
        # One that came to its end, or was made elsewhere, stays what it is: this one is another.
        ours = not run.is_finished and found.path.resolve().parent == self.checkpoints.folder.resolve()
        run.begin(position.epochs, anew=not ours)
        self.checkpoints.forget_after(position)
        event = {
            "kind": "resumed", "epoch": position.epoch, "step": position.step, "world_size": run.world.size,
        }  # fmt: skip
        self.position = replace(position, history=(*position.history, event))
        size = "" if same_size else f", then on {found.size} ranks and now on {run.world.size}"
        run.progress.say(
            f"resumed: {found.path}, after epoch {position.epoch - 1} and {position.step} steps{size}",
            "resumed",
            checkpoint=str(found.path),
            epoch=position.epoch,
            step=position.step,
        )
        run.event("resumed", found.path.name, epoch_num=position.epoch)

    @contextmanager
    def training(self) -> Iterator[None]:
        """The time in which signals stop the run at the next step boundary; then its timeline is written."""
        run = self.run
        try:
            with self.control.listening(), timeline.kept(run.out / folder.TRACE, run.progress.say):
                yield
        except BaseException as error:
            run.progress.leave("stopped" if isinstance(error, RunAgainError) else "failed")
            raise
        run.progress.end()

    def finish(
        self,
        *,
        optimizer: keras.Optimizer,
        sync: dict[str, Any],
        weights_sha256: str,
        details: dict[str, Any] | None = None,
    ) -> RunRecord:
        """Writes the record of a run that has come to its end; arguments as ``Run.finish``."""
        return self.run.finish(
            optimizer=optimizer,
            sync=sync,
            weights_sha256=weights_sha256,
            details=details,
            history=self.position.history,
            checkpoint_s=self.checkpoints.seconds,
        )

    # ---- Within an epoch --------------------------------------------------------------------------------

    def rest_of_epoch(self) -> tuple[tuple[Leg, ...], int]:
        """The legs of the epoch that are over, and how many steps of the present one are done."""
        legs, size = self.position.legs, self.run.peers.size
        if legs and legs[-1].size == size:
            return legs[:-1], legs[-1].num_steps
        return legs, 0

    def begin_epoch(self, num_steps: int) -> None:
        """To be called before the first step of an epoch, or of the rest of one.

        Args:
            num_steps: Of the whole epoch.
        """
        self._closed, first = self.rest_of_epoch()
        self._offset = sum(leg.num_steps for leg in self._closed)
        self._before = self.position.so_far
        self.run.begin_epoch(self.position.epoch, num_steps)
        if self._offset + first:
            self.run.progress.advance(self._offset + first)

    def limit(self, first: int, stop: int) -> int:
        """As ``ChunkCallback`` has it."""
        end = self.control.limit(self._offset + first, self._offset + stop)
        watchdog.note(
            f"epoch {self.position.epoch}, training, between step {self._offset + first + 1} and {end}"
        )
        return end - self._offset

    def after(self, chunk: Chunk, world: World) -> tuple[float, bool]:
        """As ``ChunkCallback`` has it.

        Raises:
            DivergedError: the loss or the weights are not finite on some rank; on all ranks.
        """
        first, stop = self._offset + chunk.first, self._offset + chunk.stop
        decision = self.control.agree(
            first=first,
            stop=stop,
            elapsed_s=chunk.elapsed_s,
            finite=chunk.finite,
            loss=chunk.loss,
            count=chunk.count,
            exchange_s=chunk.exchange_s,
        )
        if decision.diverged:
            raise self._diverged(first, stop, finite=chunk.finite)
        self.run.progress.advance(stop, decision.by_rank)
        return decision.slowest_s, decision.stop or decision.save

    def pause(self, step: int, so_far: EpochTotals) -> None:
        """Saves in mid-epoch, and leaves if the run is to stop.

        Args:
            step: Steps of the present leg that are done.
            so_far: What this process saw of the epoch.

        Raises:
            RunAgainError: it is to stop; on all ranks.
        """
        legs = (*self._closed, Leg(self.run.peers.size, step))
        self.position = replace(self.position, legs=legs, so_far=self._before + so_far)
        self._save_or_leave()

    def whole(self, rest: EpochTotals) -> EpochTotals:
        """What the epoch came to, given what this process saw of it."""
        return self._before + rest

    def end_epoch(self, record: EpochRecord) -> None:
        """Saves after an epoch, and leaves if the run is to stop and is not at its end.

        Raises:
            RunAgainError: as ``pause``.
        """
        before = self.position
        self.position = Position(
            epoch=before.epoch + 1, epochs=(*before.epochs, record), history=before.history
        )
        if record.epoch == self.run.config.epochs:
            self.save()
        else:
            self._save_or_leave()

    def _diverged(self, first: int, stop: int, *, finite: bool) -> DivergedError:
        """The error of a loss or weights that are not finite after the steps ``first`` to ``stop``.

        On all ranks together; counted within the epoch.
        """
        world = self.run.world
        where = [
            f"rank {rank} on {world.hosts[rank]}"
            for rank, theirs in enumerate(world.gather_all(finite))
            if not theirs
        ]
        return DivergedError(
            f"epoch {self.position.epoch}, between step {first + 1} and {stop}: the loss or the weights "
            f"became NaN or infinite on {', '.join(where)}. The last checkpoint is kept",
            remedy="a smaller --learning-rate, or --on-nan rollback",
        )

    def roll_back(self, error: DivergedError) -> None:
        """Goes back to the last checkpoint with half the learning rate, or raises ``error`` again."""
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
        self._restore(found.arrays, same_size=found.size == run.world.size)
        position = found.position
        self.checkpoints.forget_after(position)
        # What the checkpoint has of it happened before; the rate counts from there.
        times = 1 + len(_rollbacks(history)) - len(_rollbacks(position.history))
        rate = [self.state.slow_down() for _ in range(times)][-1]
        event = {
            "kind": "rolled back", "epoch": position.epoch, "step": position.step, "learning_rate": rate,
        }  # fmt: skip
        self.position = replace(position, history=(*history, event))
        run.progress.warn(error.message)
        run.rewind(position.epochs)
        run.progress.say(
            f"rolled back: to {found.path.name}, learning rate now {rate:g}",
            "rolled_back",
            checkpoint=str(found.path),
            learning_rate=rate,
        )

    # ---- Saving -----------------------------------------------------------------------------------------

    def save(self) -> bool:
        """Writes a checkpoint of where the run is, on all ranks together; whether it was written."""
        watchdog.note(f"epoch {self.position.epoch}, writing a checkpoint")
        with timeline.phase("checkpoint"):
            self._written = self.checkpoints.save(self.position, self.state.arrays())
        self.control.saved()
        return self._written

    def abandon(self) -> None:
        """Leaves as ``pause`` does, but goes on from the last checkpoint: for what cannot be cut in two.

        Raises:
            RunAgainError: always; on all ranks.
        """
        self._leave(written=self._written)

    def _save_or_leave(self) -> None:
        written = self.save()
        if self.control.stopping:
            self._leave(written=written)

    def _leave(self, *, written: bool) -> None:
        run, position = self.run, self.position
        where = f"epoch {position.epoch}, {position.step} steps done"
        reasons = [reason for reason in run.world.gather_all(self.control.reason) if reason]
        run.event("run_stop", status="aborted")
        if not written:
            raise UsageError(f"stopped by {reasons[0]} in {where}, and could not save", remedy="see above")
        raise RunAgainError(
            f"stopped by {reasons[0]} in {where}; saved in {self.checkpoints.folder}",
            remedy="run the same command again, and it goes on from there"
            + ("" if run.config.resume == "auto" else ", with --resume auto"),
        )

    def _restore(self, arrays: Arrays, *, same_size: bool) -> None:
        with self.run.world.together():
            here = self.state.arrays()
            names = here.keys() | arrays.keys()
            # A rank on its own exchanges nothing, and has nothing of it that lasts.
            if not same_size:
                names = {
                    name for name in names if not name.startswith(EXCHANGE) or name in here.keys() & arrays
                }
            apart = [
                name
                for name in names
                if name not in here or name not in arrays or arrays[name].shape != here[name].shape
            ]
            if apart:
                raise UsageError(
                    f"the checkpoint is of another model or optimizer: {min(apart)} differs",
                    remedy="--resume never, or --out with another folder",
                )
        self.state.restore(arrays, same_size=same_size)


def _rollbacks(history: tuple[dict[str, object], ...]) -> list[dict[str, object]]:
    return [event for event in history if event["kind"] == "rolled back"]


def _work(run: Run) -> dict[str, object]:
    """What two runs must have in common for one to go on with the other's checkpoint."""
    config: TrainConfig = run.config
    names = (
        "model",
        "batch_size",
        "optimizer",
        "learning_rate",
        "seed",
        "dtype",
        "dataset",
        "average",
        "every",
        "post_local_from",
        "accumulate",
        "sync_batchnorm",
        "lr_scaling",
        "warmup_epochs",
        "fraction",
        "local_epochs",
        "proximal",
        "server_momentum",
    )
    found = {name: getattr(config, name) for name in names if hasattr(config, name)}
    found["exchange"] = getattr(config, "exchange", {})
    # The same data cut into other shards has another order.
    splits = run.shards.manifest.splits.values()
    shards = hashlib.sha256("".join(file.sha256 for split in splits for file in split.files).encode())
    return {"strategy": run.strategy, **found, "shards_sha256": shards.hexdigest()}


def copies(variables: dict[str, Any]) -> Arrays:
    """Copies of TensorFlow's or Keras's variables, by name."""
    return {name: np.array(variable.numpy()) for name, variable in variables.items()}
