"""The name of a run, over an interruption and a new beginning; and what it leaves beside its record."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from mpi_train.report.collect import collect
from mpi_train.sinks.base import scalars

Start = Callable[..., Any]

pytestmark = [pytest.mark.mpi_skip, pytest.mark.timeout(300)]

has_mlflow = importlib.util.find_spec("mlflow") is not None


def test_a_run_keeps_its_id_and_the_next_one_puts_it_aside(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--tensorboard", str(tmp_path / "board")]
    stopped = start("mpi", *flags, ranks=2)
    stopped.wait_for_training(random.Random(1))
    os.kill(stopped.pid(1), signal.SIGTERM)
    assert stopped.ended(within_s=30) == 75, stopped.printed
    resumed = start("mpi", *flags, ranks=2)
    assert resumed.ended(within_s=120) == 0, resumed.printed
    first = resumed.record()
    for job in (stopped, resumed):
        assert f"run {first.run_id} in {job.out}\n" in job.printed
    assert first.started[:10].replace("-", "") == first.run_id[:8]
    assert "-mpi-2x-mlp-synthetic-s1-" in first.run_id

    with open(resumed.out / "epochs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["run_id"] for row in rows} == {first.run_id}
    for row, record in zip(rows, first.epochs, strict=True):
        for name in ("epoch", "train_s", "images_per_s", "sync_s", "train_loss", "test_accuracy"):
            assert float(row[name]) == getattr(record, name)
    assert float(rows[-1]["total_train_s"]) == first.train_s
    assert [path.name for path in (tmp_path / "board").iterdir()] == [first.run_id]
    told: dict[int, dict[str, float]] = {}
    for path in sorted((tmp_path / "board" / first.run_id).iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            figures = {v.tag: v.simple_value for v in event.summary.value if v.HasField("simple_value")}
            told.update({event.step: figures} if figures else {})
    assert sorted(told) == [record.epoch for record in first.epochs]
    for record in first.epochs:
        assert told[record.epoch] == pytest.approx(scalars(record))

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:9")
    again = start("mpi", "--epochs", "1", "--tensorboard", "/proc/board")
    assert again.ended(within_s=60) == 0, again.printed
    second = again.record()
    assert second.run_id > first.run_id
    assert again.printed.count("warning: --tensorboard /proc/board is left out") == 1
    assert again.printed.count("warning: MLflow is left out") == 1
    assert has_mlflow or "pip install mlflow-skinny" in again.printed
    aside = again.out / "earlier" / first.run_id
    assert {path.name for path in aside.iterdir()} == {
        "run.json", "events.jsonl", "epochs.csv", "mistakes.json",
    }  # fmt: skip
    assert [run.record.run_id for run in collect([again.out]).runs] == [second.run_id]
    assert [run.record.run_id for run in collect([again.out / "earlier"]).runs] == [first.run_id]


READ_BACK = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient()
(run,) = client.search_runs([client.get_experiment_by_name("garments").experiment_id])
history = client.get_metric_history(run.info.run_id, "test/accuracy")
print(json.dumps({
    "status": run.info.status, "name": run.info.run_name, "tags": run.data.tags, "params": run.data.params,
    "history": [[point.step, point.value] for point in history],
    "artifacts": [file.path for file in client.list_artifacts(run.info.run_id)],
}))
"""


@pytest.mark.skipif(not has_mlflow, reason="mlflow is not installed here; pip install mlflow-skinny")
def test_mlflow_has_what_the_record_has(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "garments")
    stopped = start("mpi", ranks=2)
    stopped.wait_for_training(random.Random(1))
    os.kill(stopped.pid(0), signal.SIGTERM)
    assert stopped.ended(within_s=30) == 75, stopped.printed
    job = start("mpi", ranks=2)
    assert job.ended(within_s=60) == 0, job.printed
    assert "warning" not in job.printed
    told = json.loads(
        subprocess.run([sys.executable, "-c", READ_BACK], check=True, capture_output=True).stdout
    )
    record = job.record()
    assert (told["status"], told["name"]) == ("FINISHED", record.run_id)
    assert told["tags"]["run_id"] == record.run_id
    assert told["params"]["batch_size"] == "12"
    assert told["history"] == [[epoch.epoch, epoch.test_accuracy] for epoch in record.epochs]
    assert told["artifacts"] == ["run.json"]
