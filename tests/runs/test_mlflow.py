"""MLflow logger: read back by the client of MLflow, and without a server."""

from __future__ import annotations

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

Start = Callable[..., Any]

pytestmark = [
    pytest.mark.mpi_skip,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        importlib.util.find_spec("mlflow") is None,
        reason="mlflow is not installed here; pip install mlflow-skinny",
    ),
]

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


@pytest.mark.launches
def test_mlflow_gets_the_figures_of_the_record(
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
    found = json.loads(
        subprocess.run([sys.executable, "-c", READ_BACK], check=True, capture_output=True).stdout
    )
    record = job.record()
    assert (found["status"], found["name"]) == ("FINISHED", record.run_id)
    assert found["tags"]["run_id"] == record.run_id
    assert found["params"]["batch_size"] == "12"
    assert found["history"] == [[epoch.epoch, epoch.test_accuracy] for epoch in record.epochs]
    assert found["artifacts"] == ["run.json"]


def test_a_missing_server_costs_a_warning(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:9")
    job = start("mpi", "--epochs", "2", ranks=2)
    assert job.ended(within_s=60) == 0, job.printed
    assert job.printed.count("warning: MLflow is disabled") == 1
    assert len(job.record().epochs) == 2
