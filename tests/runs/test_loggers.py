"""Loggers: the figures of the record, also after a rollback, and no harm if a logger fails."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from mpi_train.runs.config import TrainConfig
from mpi_train.runs.loggers import EpochsCsv, Logger, Loggers, TensorBoard, make, scalars
from mpi_train.runs.record import EpochRecord
from mpi_train.training.totals import RankTimes

INFO: dict[str, Any] = {
    "run_id": "20261121T110222Z-mpi-2x-cnn-fashion_mnist-s1-3f9a",
    "strategy": "mpi",
    "command": "python jobs/mpi.py",
    "world_size": 2,
    "environment": {"hosts": ["n1", "n1"]},
    "config": {"batch_size": 64},
}


def epoch(number: int, loss: float = 0.5) -> EpochRecord:
    return EpochRecord(
        epoch=number,
        train_s=1 / 3 + number,
        eval_s=0.1,
        images_per_s=60_000 / 7,
        sync_s=0.7,
        train_loss=loss,
        train_accuracy=0.8,
        test_loss=0.4,
        test_accuracy=0.9,
        by_rank=[RankTimes(1.0, 0.1, 0.5, 0.01, 7), RankTimes(1.4, 0.1, 0.1, 0.03, 7)],
    )


def test_hidden_time_is_logged_if_there_is_some() -> None:
    usual = epoch(1)
    hides = dataclasses.replace(usual, by_rank=[RankTimes(1.0, 0.1, 0.5, 0.01, 7, 0.25), *usual.by_rank[1:]])
    assert {**scalars(usual), "ranks/hidden_s_mean": 0.125, "ranks/hidden_s_max": 0.25} == scalars(hides)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def logged(folder: Path) -> list[tuple[int, float]]:
    """Epoch and training loss as TensorBoard shows them, which obeys the marks of a rollback."""
    shown: list[tuple[int, float]] = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            if event.HasField("session_log"):
                shown = [point for point in shown if point[0] < event.step]
            for value in event.summary.value:
                if value.tag == "train/loss":
                    shown.append((event.step, round(value.simple_value, 6)))
    return shown


def test_the_table_has_the_figures_of_the_record(tmp_path: Path) -> None:
    epochs = [epoch(1), epoch(2)]
    logger = EpochsCsv(tmp_path / "epochs.csv")
    logger.start(INFO, [])
    assert rows(tmp_path / "epochs.csv") == []
    for number, record in enumerate(epochs, start=1):
        logger.epoch(record)
        assert len(rows(tmp_path / "epochs.csv")) == number  # it can be followed
    for row, record in zip(rows(tmp_path / "epochs.csv"), epochs, strict=True):
        assert (row["run_id"], row["strategy"], row["world_size"]) == (INFO["run_id"], "mpi", "2")
        for name, value in dataclasses.asdict(record).items():
            if name != "by_rank":
                assert type(value)(row[name] == "True" if isinstance(value, bool) else row[name]) == value
    assert float(row["total_train_s"]) == sum(record.train_s for record in epochs)


def test_the_table_follows_a_rollback(tmp_path: Path) -> None:
    logger = EpochsCsv(tmp_path / "epochs.csv")
    logger.start(INFO, [epoch(1), epoch(2), epoch(3)])
    logger.rewind([epoch(1)])
    logger.epoch(epoch(2, loss=0.25))
    found = rows(tmp_path / "epochs.csv")
    assert [(row["epoch"], row["train_loss"]) for row in found] == [("1", "0.5"), ("2", "0.25")]
    assert float(found[-1]["total_train_s"]) == epoch(1).train_s + epoch(2).train_s


def test_tensorboard_has_all_figures_of_an_epoch(tmp_path: Path) -> None:
    logger = TensorBoard(tmp_path)
    logger.start(INFO, [])
    logger.epoch(epoch(1))
    (path,) = (tmp_path / INFO["run_id"]).iterdir()
    first, *events = tf.compat.v1.train.summary_iterator(str(path))
    assert first.file_version == "brain.Event:2"
    values = {value.tag: value for event in events for value in event.summary.value}
    assert b"| batch_size | `64` |" in values.pop("config").tensor.string_val[0]
    assert values.pop("environment").metadata.plugin_data.plugin_name == "text"
    figures = {tag: value.simple_value for tag, value in values.items()}
    assert figures == pytest.approx(scalars(epoch(1)))
    assert figures["ranks/waiting_s_mean"] == pytest.approx(0.3)
    assert figures["ranks/compute_s_max"] == pytest.approx(1.4)


@pytest.mark.parametrize("before", [[], [1], [1, 2, 3, 4]], ids=len)
def test_tensorboard_shows_each_epoch_once_after_a_resumption(before: Sequence[int], tmp_path: Path) -> None:
    """The interrupted run had logged nothing, less, or more epochs than its checkpoint has."""
    if before:
        interrupted = TensorBoard(tmp_path)
        interrupted.start(INFO, [])
        for number in before:
            interrupted.epoch(epoch(number))
    (tmp_path / INFO["run_id"]).mkdir(exist_ok=True)
    for path in (tmp_path / INFO["run_id"]).iterdir():
        with open(path, "ab") as file:
            file.write(b"cut")  # killed within a record
        path.rename(path.with_name("events.out.tfevents.0000000001.n1.1"))
    logger = TensorBoard(tmp_path)
    logger.start(INFO, [epoch(1), epoch(2)])
    logger.epoch(epoch(3, loss=0.25))
    for path in (tmp_path / INFO["run_id"]).iterdir():
        path.write_bytes(path.read_bytes().removesuffix(b"cut"))
    assert logged(tmp_path / INFO["run_id"]) == [(1, 0.5), (2, 0.5), (3, 0.25)]
    logger.rewind([epoch(1)])
    logger.epoch(epoch(2, loss=0.125))
    assert logged(tmp_path / INFO["run_id"]) == [(1, 0.5), (2, 0.125)]


def test_a_logger_that_fails_is_disabled_with_one_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    config = TrainConfig(tensorboard=Path("/proc/tensorboard"))  # even root cannot make it
    loggers = Loggers(make(config, tmp_path), warnings.append)
    loggers.each(lambda logger: logger.start(INFO, []))
    loggers.each(lambda logger: logger.epoch(epoch(1)))
    loggers.each(lambda logger: logger.epoch(epoch(2)))
    (warning,) = warnings
    assert "--tensorboard /proc/tensorboard is disabled: FileNotFoundError" in warning
    assert [row["epoch"] for row in rows(tmp_path / "epochs.csv")] == ["1", "2"]


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is not None, reason="mlflow is installed here")
def test_without_its_package_mlflow_is_disabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:9")
    warnings: list[str] = []
    loggers = Loggers(make(TrainConfig(), tmp_path), warnings.append)
    loggers.each(lambda logger: logger.start(INFO, []))
    loggers.each(lambda logger: logger.epoch(epoch(1)))
    (warning,) = warnings
    assert warning.startswith("MLflow is disabled: expected the package mlflow")
    assert "pip install mlflow-skinny" in warning
    assert len(rows(tmp_path / "epochs.csv")) == 1


def test_a_long_error_becomes_one_line() -> None:
    class Failing(Logger):
        name = "a logger"

        def epoch(self, record: EpochRecord) -> None:
            raise RuntimeError("cause\n" + 1000 * "and a story\n")

    warnings: list[str] = []
    Loggers([Failing()], warnings.append).each(lambda logger: logger.epoch(epoch(1)))
    assert warnings == ["a logger is disabled: RuntimeError: cause"]
