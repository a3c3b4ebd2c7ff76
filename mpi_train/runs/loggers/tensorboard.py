"""Logger for TensorBoard: an event file in ``DIR/RUN_ID``, in which a step is an epoch.

An event file is a TFRecord file of ``Event`` messages, which TensorFlow can write by itself;
``tf.summary.scalar`` needs the package tensorboard.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import tensorflow as tf

from mpi_train.runs.loggers.base import Logger, RunInfo, scalars
from mpi_train.runs.record import EpochRecord, RunRecord

Event, Summary = tf.compat.v1.Event, tf.compat.v1.Summary


class TensorBoard(Logger):
    """Log below ``folder``, which ``tensorboard --logdir`` gets; each run has a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.name, self._folder = f"--tensorboard {folder}", folder

    def start(self, info: RunInfo, epochs: Sequence[EpochRecord]) -> None:
        folder = self._folder / info.run_id
        folder.mkdir(parents=True, exist_ok=True)
        kept = epochs[: _last_epoch_in(folder)]
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}"
        self._file = tf.io.TFRecordWriter(str(folder / name))
        self._put(file_version="brain.Event:2")
        self.rewind(kept)
        for tag, values in (("config", info.config), ("environment", info.environment)):
            self._put(step=len(epochs), summary=_text(tag, values))
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
    table = "\n".join(
        ["| | |", "|:---|:---|", *(f"| {name} | `{value}` |" for name, value in values.items())]
    )
    metadata = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "text"})
    value = Summary.Value(tag=tag, metadata=metadata, tensor=tf.make_tensor_proto([table.encode()]))
    return Summary(value=[value])
