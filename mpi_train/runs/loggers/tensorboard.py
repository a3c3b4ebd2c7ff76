"""The figures of each epoch for TensorBoard: an event file in ``DIR/RUN_ID``, in which a step is an epoch.

An event file is a TFRecord file of ``Event`` messages, which TensorFlow has without the package
tensorboard that its own ``tf.summary.scalar`` needs. Scalars are of the form that all readers know.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import tensorflow as tf

from mpi_train.runs.loggers.base import About, scalars
from mpi_train.runs.record import EpochRecord, RunRecord

Event, Summary = tf.compat.v1.Event, tf.compat.v1.Summary


class TensorBoard:
    """Args:
    folder: What ``tensorboard --logdir`` is given; runs lie side by side in it.
    """

    def __init__(self, folder: Path) -> None:
        self.name = f"--tensorboard {folder}"
        self._folder = folder

    def start(self, about: About, epochs: Sequence[EpochRecord]) -> None:
        folder = self._folder / about.run_id
        folder.mkdir(parents=True, exist_ok=True)
        told = _epochs_in(folder)
        kept = list(itertools.takewhile(lambda record: record.epoch in told, epochs))
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}"
        self._file = tf.io.TFRecordWriter(str(folder / name))
        self._put(file_version="brain.Event:2")
        self.rewind(kept)
        for tag, values in (("config", about.config), ("environment", about.environment)):
            self._put(step=len(epochs), summary=_text(tag, values))
        for record in epochs[len(kept) :]:
            self.epoch(record)
        self._file.flush()

    def rewind(self, epochs: Sequence[EpochRecord]) -> None:
        # At this mark TensorBoard forgets what it has of the step and of later ones.
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


def _epochs_in(folder: Path) -> set[int]:
    """The epochs that an interrupted run has told."""
    found: set[int] = set()
    for path in folder.glob("events.out.tfevents.*"):
        with suppress(tf.errors.DataLossError):  # it was killed within a record
            for record in tf.data.TFRecordDataset(str(path), buffer_size=1 << 18).as_numpy_iterator():
                event = Event.FromString(record)
                if any(value.tag == "train/loss" for value in event.summary.value):
                    found.add(event.step)
    return found


def _text(tag: str, values: dict[str, Any]) -> Any:
    """A table in Markdown, for the page of texts."""
    rows = [f"| {name} | `{value}` |" for name, value in values.items()]
    table = "\n".join(["| | |", "|:---|:---|", *rows])
    metadata = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "text"})
    value = Summary.Value(tag=tag, metadata=metadata, tensor=tf.make_tensor_proto([table.encode()]))
    return Summary(value=[value])
