"""The frame of a run: data in, progress, records and logs out, whatever trains in between."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mpi_train.data.examples import Examples
from mpi_train.data.shards import ShardSet
from mpi_train.monitor import timeline
from mpi_train.monitor.progress import Progress
from mpi_train.monitor.status import StatusFile
from mpi_train.runs.config import TrainConfig
from mpi_train.runs.folder import RunFolder, new_run_id, started
from mpi_train.runs.loggers import Loggers, make
from mpi_train.runs.record import EpochRecord, RunRecord, median_rate
from mpi_train.runtime import machine, watchdog
from mpi_train.runtime.errors import DivergedError
from mpi_train.runtime.flags import as_dict
from mpi_train.runtime.world import World
from mpi_train.training.evaluation import Scores
from mpi_train.training.totals import EpochTotals


class Run:
    """One run of one strategy.

    A strategy makes a ``Run``, reads the data and builds what it trains, and hands both to
    ``epochs.train_epochs``, which takes the run through ``begin``, ``start``, the epochs and ``finish``.

    Attributes:
        replicas: Ranks that divide the data among them: all ranks, or those with the same part of the model.
        input_shape: Height, width, channels.
        is_finished: On the root, True if the folder held the record of a finished run.
        epochs: Records of the finished epochs.
        run_id: Id of the run; empty before ``begin``.

    Raises:
        DataError, UsageError: the data or the output folder cannot be used. Raised on all ranks.
    """

    def __init__(self, strategy: str, config: TrainConfig, world: World, threads: int) -> None:
        self.strategy, self.config, self.world, self.threads = strategy, config, world, threads
        self.replicas = world
        if config.trace:
            timeline.start(world)
        self._startup = dict.fromkeys(("import", "load", "build", "trace"), 0.0)
        self.lap("import")
        with world.together():
            self.shards = ShardSet.open(config.data_dir, config.dataset)
        shape = self.shards.manifest.image_shape
        self.input_shape = (shape[0], shape[1], shape[2] if len(shape) == 3 else 1)
        self.num_classes = self.shards.manifest.num_classes
        self.num_train = self.shards.num_examples("train")
        self.epochs: list[EpochRecord] = []
        self.out = config.out or Path("results") / strategy
        self._scores: Scores | None = None
        self._folder = RunFolder(self.out, world)
        self._folder.open()
        self.is_finished = self._folder.path.exists()
        self.event = self._folder.event
        self.progress = Progress(
            speaks=world.is_root, style=config.style, status=StatusFile(self.out, strategy, world.hosts)
        )
        self.run_id = ""
        self.loggers = Loggers(make(config, self.out) if world.is_root else [], self.progress.warn)

    def read(self, split: str) -> Examples:
        """Read this rank's examples of ``split``. Raises ``DataError`` on all ranks."""
        with self.world.together():
            examples = self.shards.read(split, self.replicas.rank, self.replicas.size)
        self.lap("load")
        return examples

    def lap(self, phase: str) -> None:
        """End a phase of the start-up; it began where the previous one ended."""
        timeline.lap(phase)
        before = sum(self._startup.values())
        self._startup[phase] += machine.process_age_s() - before

    def begin(self, epochs: Sequence[EpochRecord] = (), *, anew: bool = True) -> None:
        """Begin a run under a new id or, if not ``anew``, continue the interrupted run of the folder.

        A run that starts from a checkpoint of another run is new too. ``epochs`` are finished.
        """
        config = self.config
        new_id = new_run_id(
            time.time() - machine.process_age_s(),
            (self.strategy, f"{self.world.size}x", config.model, config.dataset, f"s{config.seed}"),
        )
        self.run_id = self._folder.begin(new_id, anew=anew)
        self.epochs = list(epochs)
        self.progress.say(f"run {self.run_id} in {self.out}", "run", run_id=self.run_id, out=str(self.out))
        self.event("submission_benchmark", self.strategy)
        self.event("init_start")

    def start(self, model_name: str, num_weights: int) -> None:
        """End the start-up, just before the first step; everything is built and traced."""
        self.world.barrier()
        self.lap("trace")
        everyone = self.world.gather_all(self._startup)
        self._startup_s = max(sum(rank.values()) for rank in everyone)
        self._startup = {phase: max(rank[phase] for rank in everyone) for phase in self._startup}
        self._info: dict[str, Any] = {
            "strategy": self.strategy,
            "run_id": self.run_id,
            "command": machine.command(),
            "world_size": self.world.size,
            "environment": machine.describe(self.world),
        }
        info = {**self._info, "config": as_dict(self.config)}
        self.loggers.each(lambda logger: logger.start(info, self.epochs))
        self.world.barrier()
        self.event("init_stop")
        self.event("global_batch_size", self.config.batch_size)
        self.event("train_samples", self.num_train)
        self.event("seed", self.config.seed)
        self.event("run_start")
        ranks = f"{self.world.size} rank{'s' if self.world.size > 1 else ''} x {self.threads} threads"
        facts = {
            "strategy": self.strategy,
            "model": model_name,
            "num_weights": num_weights,
            "dataset": self.config.dataset,
            "num_images": self.num_train,
            "global_batch_size": self.config.batch_size,
            "dtype": self.config.dtype,
            "world_size": self.world.size,
            "threads_per_rank": self.threads,
        }
        line = (
            "{strategy}: {model} ({num_weights:,} weights), {dataset} ({num_images:,} images), "
            "global batch {global_batch_size}, {dtype}, "
        )
        self.progress.say(line.format(**facts) + ranks, "start", **facts)

    def begin_epoch(self, epoch: int, num_steps: int) -> None:
        """Announce an epoch, counted from 1, before its first step."""
        watchdog.note(f"epoch {epoch}, before the first step")
        timeline.begin_epoch(epoch)
        self.event("epoch_start", epoch_num=epoch)
        self.progress.begin(epoch, self.config.epochs, num_steps)

    def end_epoch(
        self,
        epoch: int,
        totals: EpochTotals,
        evaluate: Callable[[], Scores],
        *,
        stalled: bool = False,
        expected: int | None = None,
    ) -> EpochRecord:
        """Evaluate, record and show an epoch, on all ranks together.

        Args:
            epoch: Number of the epoch, from 1.
            totals: Totals of its training over all ranks.
            evaluate: Function that returns the scores of this rank's part of the test set.
            stalled: True if a single step took unusually long.
            expected: Number of examples to visit (default: each of the training set once).

        Raises:
            DivergedError: the loss is not finite. Raised on all ranks.
        """
        expected = expected or self.num_train
        if totals.count != expected:
            raise RuntimeError(f"epoch {epoch} visited {totals.count} examples of {expected}")
        self.progress.evaluate()
        watchdog.note(f"epoch {epoch}, evaluation")
        self.event("epoch_stop", epoch_num=epoch)
        _require_finite(epoch, "training loss", totals.mean_loss)
        self.event("eval_start", epoch_num=epoch)
        self.world.barrier()
        start = time.perf_counter()
        with timeline.phase("evaluate"):
            self._scores = evaluate()
            test_loss, test_accuracy = self._scores.means(self.world)
        _require_finite(epoch, "test loss", test_loss)
        eval_s = max(self.world.gather_all(time.perf_counter() - start))
        self.event("eval_stop", epoch_num=epoch)
        self.event("eval_accuracy", test_accuracy, epoch_num=epoch)
        record = EpochRecord(
            epoch=epoch,
            train_s=totals.train_s,
            eval_s=eval_s,
            images_per_s=totals.count / totals.train_s,
            sync_s=totals.sync_s,
            train_loss=totals.mean_loss,
            train_accuracy=totals.accuracy,
            test_loss=test_loss,
            test_accuracy=test_accuracy,
            stalled=stalled,
            by_rank=totals.by_rank,
        )
        self.epochs.append(record)
        timeline.end_epoch()
        self.loggers.each(lambda logger: logger.epoch(record))
        self.progress.say(
            f"epoch {epoch}/{self.config.epochs}  {totals.train_s:5.2f} s  "
            f"{record.images_per_s:6,.0f} images/s  loss {totals.mean_loss:.4f}  "
            f"accuracy {totals.accuracy:.4f}, test {test_accuracy:.4f}"
            + ("  (stalled: one step took most of this)" if stalled else ""),
            "epoch",
            **asdict(record),
        )
        return record

    def rewind(self, epochs: Sequence[EpochRecord]) -> None:
        """Return to the point at which only these epochs were finished."""
        self.epochs = list(epochs)
        self.loggers.each(lambda logger: logger.rewind(epochs))

    def finish(self, **results: Any) -> RunRecord:
        """Write ``run.json`` and return its record, which gets the other ``results`` as they are."""
        self.event("run_stop", status="success")
        config, names = self.config, ("model", "dataset", "optimizer", "seed", "dtype")
        record = RunRecord(
            **self._info,
            **{name: getattr(config, name) for name in names},
            started=started(self.run_id),
            dataset_sha256=self.shards.manifest.raw_sha256,
            threads_per_rank=self.threads,
            global_batch_size=config.batch_size,
            epochs=self.epochs,
            train_s=sum(epoch.train_s for epoch in self.epochs),
            images_per_s=median_rate(self.epochs),
            test_accuracy=self.epochs[-1].test_accuracy,
            startup_s=self._startup_s,
            startup=self._startup,
            peak_rss_mib=machine.peak_rss_mib(self.world),
            bytes_per_step=self._bytes_per_step(),
            class_names=list(self.shards.manifest.class_names),
            # A run that was interrupted between its last epoch and its record has no scores.
            confusion=self._scores.confusion(self.world, self.num_classes) if self._scores else None,
            **results,
        )
        self._folder.write(record)
        self.loggers.each(lambda logger: logger.finish(record))
        self.progress.leave("finished")
        facts = {name: getattr(record, name) for name in ("train_s", "images_per_s", "test_accuracy")}
        self.progress.say(
            f"{self.strategy}: {record.train_s:.2f} s of training, {record.images_per_s:,.0f} images/s, "
            f"test accuracy {record.test_accuracy:.4f}; {self._folder.path}",
            "finish",
            **facts,
            record=str(self._folder.path),
        )
        return record

    def _bytes_per_step(self) -> float | None:
        if self.world.size == 1:
            return 0.0
        if not all(epoch.by_rank for epoch in self.epochs):
            return None
        sent = sum(max(rank.sent_bytes for rank in epoch.by_rank) for epoch in self.epochs)
        # Federated rounds train on other numbers of examples than the training set has.
        counts = [round(epoch.images_per_s * epoch.train_s) for epoch in self.epochs]
        return sent / sum(math.ceil(count / self.config.batch_size) for count in counts)


def _require_finite(epoch: int, name: str, loss: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(f"epoch {epoch}: the {name} became {loss}", remedy="a smaller --learning-rate")
