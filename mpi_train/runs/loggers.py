"""Loggers of a run beside its record: a CSV table, TensorBoard, MLflow.

Loggers are a convenience. A logger that fails is disabled with one warning; the training continues.
"""

from __future__ import annotations

import atexit
import csv
import dataclasses
import logging
import os
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import tensorflow as tf

from mpi_train.runs import folder
from mpi_train.runs.config import TrainConfig
from mpi_train.runs.record import EpochRecord, RunRecord
from mpi_train.runtime import files
from mpi_train.runtime.errors import JobError, PlatformError

Event, Summary = tf.compat.v1.Event, tf.compat.v1.Summary

FIGURES = [field.name for field in dataclasses.fields(EpochRecord) if field.name != "by_rank"]
COLUMNS = ["run_id", "strategy", "world_size", *FIGURES, "total_train_s"]
"""Columns of ``epochs.csv``. ``total_train_s`` is the sum of ``train_s`` up to the end of the epoch."""

MLFLOW_DEFAULTS = {
    # Seconds and retries of a request: MLflow's defaults wait many minutes for a server that is down.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    # Programs may parse the standard output of a job.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Variables of MLflow that are set unless the user has set them."""


class Logger:
    """Destination of a run's figures. Rank 0 calls it between epochs; every method may raise anything."""

    name: str
    """Name in a warning."""

    def start(self, info: dict[str, Any], epochs: Sequence[EpochRecord]) -> None:
        """Begin the log.

        Args:
            info: ``run_id``, ``strategy``, ``command``, ``world_size`` and ``environment`` as in
                ``RunRecord``, and ``config``, the flags as JSON values.
            epochs: Completed epochs of a resumed run, which may have been logged before.
        """

    def rewind(self, epochs: Sequence[EpochRecord]) -> None:
        """Discard all epochs but ``epochs``, to which the run was rolled back."""

    def epoch(self, record: EpochRecord) -> None:
        """Log a completed epoch."""

    def finish(self, record: RunRecord) -> None:
        """Close the log of a completed run, whose record has been written."""


class Loggers(list[Logger]):
    """Several loggers, whose errors cost a warning.

    Args:
        loggers: Loggers to call; none on ranks other than 0.
        warn: Function that shows a line to the user.
    """

    def __init__(self, loggers: Sequence[Logger], warn: Callable[[str], None]) -> None:
        super().__init__(loggers)
        self._warn = warn

    def each(self, call: Callable[[Logger], None]) -> None:
        """Call each logger, and remove one that raises."""
        for logger in list(self):
            try:
                call(logger)
            except Exception as error:
                self.remove(logger)
                # Errors of other libraries can be pages long.
                text = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
                self._warn(f"{logger.name} is disabled: {error if isinstance(error, JobError) else text}")


def make(config: TrainConfig, out: Path) -> list[Logger]:
    """Make the loggers of a run with the output folder ``out``."""
    loggers: list[Logger] = [EpochsCsv(out / folder.EPOCHS)]
    if config.tensorboard is not None:
        loggers.append(TensorBoard(config.tensorboard))
    if os.environ.get("MLFLOW_TRACKING_URI"):
        loggers.append(MLflow(out / folder.RECORD))
    return loggers


def scalars(record: EpochRecord) -> dict[str, float]:
    """Collect the figures of an epoch by name, with a prefix for each group; times in seconds.

    A time that differs between ranks gives two figures: mean and maximum over the ranks.
    """
    figures = {
        "train/loss": record.train_loss,
        "train/accuracy": record.train_accuracy,
        "test/loss": record.test_loss,
        "test/accuracy": record.test_accuracy,
        **{
            f"speed/{name}": getattr(record, name) for name in ("images_per_s", "train_s", "eval_s", "sync_s")
        },
    }
    for name in ("compute_s", "moving_s", "waiting_s", "host_s", "hidden_s"):
        seconds = [getattr(rank, name) for rank in record.by_rank]
        if any(seconds) or (seconds and name != "hidden_s"):  # few methods hide an exchange
            figures[f"ranks/{name}_mean"] = statistics.fmean(seconds)
            figures[f"ranks/{name}_max"] = max(seconds)
    return figures


class EpochsCsv(Logger):
    """CSV table in the file ``path``. Rows are appended; a run that is rolled back replaces the file."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = str(path), path

    def start(self, info: dict[str, Any], epochs: Sequence[EpochRecord]) -> None:
        self._run = [info[name] for name in COLUMNS[:3]]
        self.rewind(epochs)

    def rewind(self, epochs: Sequence[EpochRecord]) -> None:
        self._train_s: list[float] = []
        with files.replacing(self._path) as temporary:
            _write(temporary, "w", [COLUMNS, *map(self._row, epochs)])

    def epoch(self, record: EpochRecord) -> None:
        _write(self._path, "a", [self._row(record)])

    def _row(self, record: EpochRecord) -> list[Any]:
        self._train_s.append(record.train_s)
        return [*self._run, *(getattr(record, name) for name in FIGURES), sum(self._train_s)]


def _write(path: Path, mode: str, rows: Sequence[Sequence[object]]) -> None:
    with open(path, mode, encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


class TensorBoard(Logger):
    """Event file in ``folder/RUN_ID``, in which a step is an epoch; ``tensorboard --logdir`` gets ``folder``.

    An event file is a TFRecord file of ``Event`` messages, which TensorFlow can write by itself;
    ``tf.summary.scalar`` needs the package tensorboard.
    """

    def __init__(self, folder: Path) -> None:
        self.name, self._folder = f"--tensorboard {folder}", folder

    def start(self, info: dict[str, Any], epochs: Sequence[EpochRecord]) -> None:
        folder = self._folder / info["run_id"]
        folder.mkdir(parents=True, exist_ok=True)
        kept = epochs[: _last_epoch_in(folder)]
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}"
        self._file = tf.io.TFRecordWriter(str(folder / name))
        self._put(file_version="brain.Event:2")
        self.rewind(kept)
        for tag in ("config", "environment"):
            self._put(step=len(epochs), summary=_text(tag, info[tag]))
        for record in epochs[len(kept) :]:
            self.epoch(record)
        self._file.flush()

    def rewind(self, epochs: Sequence[EpochRecord]) -> None:
        # This mark makes TensorBoard discard its values of the step and of later ones.
        mark = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        self._put(step=len(epochs) + 1, session_log=mark)

    def epoch(self, record: EpochRecord) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(record).items()]
        self._put(step=record.epoch, summary=Summary(value=values))
        self._file.flush()

    def finish(self, record: RunRecord) -> None:
        self._file.close()

    def _put(self, **content: Any) -> None:
        self._file.write(Event(wall_time=time.time(), **content).SerializeToString())


def _last_epoch_in(folder: Path) -> int:
    """Find the last epoch that an interrupted run has logged; 0 if there is none."""
    last = 0
    for path in folder.glob("events.out.tfevents.*"):
        with suppress(tf.errors.DataLossError):  # the run was killed within a record
            for record in tf.data.TFRecordDataset(str(path), buffer_size=1 << 18).as_numpy_iterator():
                event = Event.FromString(record)
                if any(value.tag == "train/loss" for value in event.summary.value):
                    last = max(last, event.step)
    return last


def _text(tag: str, values: dict[str, Any]) -> Any:
    """Compose a Markdown table for the text page."""
    rows = (f"\n| {name} | `{value}` |" for name, value in values.items())
    table = "".join(("| | |\n|:---|:---|", *rows))
    metadata = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "text"})
    value = Summary.Value(tag=tag, metadata=metadata, tensor=tf.make_tensor_proto([table.encode()]))
    return Summary(value=[value])


class MLflow(Logger):
    """Run in MLflow, which keeps the file ``record`` as an artifact; used if MLFLOW_TRACKING_URI is set.

    MLflow's own environment variables give the server, the experiment and the credentials. MLflow forgets
    nothing: an epoch that is repeated after a rollback has two values, and the later counts.
    """

    name = "MLflow"

    def __init__(self, record: Path) -> None:
        self._record = record

    def start(self, info: dict[str, Any], epochs: Sequence[EpochRecord]) -> None:
        for variable, value in MLFLOW_DEFAULTS.items():
            os.environ.setdefault(variable, value)
        try:
            import mlflow
        except ImportError as error:
            raise PlatformError(
                f"expected the package mlflow, as MLFLOW_TRACKING_URI is set. Got: {error}",
                remedy=".venv/bin/python -m pip install mlflow-skinny, or unset MLFLOW_TRACKING_URI",
            ) from error
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line for each retry
        self._mlflow: Any = mlflow
        # Registered before MLflow registers its own function, which reports an interrupted run as finished.
        atexit.register(self._leave)
        run_id = info["run_id"]
        known = mlflow.search_runs(
            filter_string=f"tags.run_id = '{run_id}'", max_results=1, output_format="list"
        )
        if known:
            mlflow.start_run(run_id=known[0].info.run_id)
        else:
            mlflow.start_run(run_name=run_id, tags=_tags(info))
            mlflow.log_params(info["config"])
        last_logged = known[0].data.metrics.get("epoch", 0) if known else 0
        for record in epochs:
            if record.epoch > last_logged:
                self.epoch(record)

    def epoch(self, record: EpochRecord) -> None:
        self._mlflow.log_metrics({"epoch": record.epoch, **scalars(record)}, step=record.epoch)

    def finish(self, record: RunRecord) -> None:
        run_id = self._mlflow.active_run().info.run_id
        self._mlflow.end_run()
        self._mlflow.log_artifact(str(self._record), run_id=run_id)

    def _leave(self) -> None:
        with suppress(Exception):  # the user has been warned if the server does not answer
            if self._mlflow.active_run() is not None:
                self._mlflow.end_run("KILLED")


def _tags(info: dict[str, Any]) -> dict[str, str]:
    facts = {**info, **info["environment"], "hosts": ",".join(dict.fromkeys(info["environment"]["hosts"]))}
    names = ("run_id", "strategy", "world_size", "command", "git_commit", "slurm_job_id", "hosts")
    return {name: str(facts[name]) for name in names if facts[name] is not None}
