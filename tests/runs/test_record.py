"""Records of runs: what older versions wrote, and the metric by which a run is compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpi_train.runs.record import read_run
from mpi_train.runtime.errors import DataError
from tests.report.conftest import write_run


def rewrite(path: Path, **fields: Any) -> dict[str, Any]:
    """Replace fields of a record's file; return all of them."""
    raw = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps(raw))
    return raw


def test_a_record_of_version_1_has_the_accuracy_as_its_metric(tmp_path: Path) -> None:
    path, record = tmp_path / "run.json", write_run(tmp_path, "", scores=(0.86, 0.88, 0.90))
    epochs = rewrite(path)["epochs"]
    for epoch in epochs:
        for split in ("train", "test"):
            epoch[f"{split}_accuracy"] = epoch.pop(f"{split}_metrics")["accuracy"]
    raw = rewrite(path, schema_version=1, epochs=epochs, test_accuracy=0.90)
    for name in ("metric", "metric_grows", "saved_model"):
        del raw[name]
    path.write_text(json.dumps(raw))
    old = read_run(path)
    assert old.epochs == record.epochs
    assert (old.metric, old.metric_grows, old.score, old.saved_model) == ("accuracy", True, 0.90, "")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"schema_version": 3}, "expected schema version 1 or 2. Got: 3"),
        ({"schema_version": None}, "expected schema version 1 or 2. Got: None"),
        ({"schema_version": 1}, "expected a run record. Got: 'train_accuracy'"),
        ({"schema_version": 1, "epochs": None}, "expected a run record"),
        ({"schema_version": 1, "epochs": [1]}, "expected a run record"),
        ({"metric": "auc"}, "expected a run record. Got: 'auc'"),
    ],
)
def test_other_records_are_refused(fields: dict[str, Any], text: str, tmp_path: Path) -> None:
    write_run(tmp_path, "")
    rewrite(tmp_path / "run.json", **fields)
    with pytest.raises(DataError) as caught:
        read_run(tmp_path / "run.json")
    assert text in str(caught.value)


def test_a_metric_that_should_fall_is_reached_from_above(tmp_path: Path) -> None:
    made = {"metric": "mean_absolute_error", "metric_grows": False, "scores": (0.5, 0.3, 0.2)}
    record = write_run(tmp_path, "", **made)
    assert read_run(tmp_path / "run.json") == record
    assert record.score == 0.2
    assert [record.is_reached(epoch, 0.3) for epoch in record.epochs] == [False, True, True]


def test_a_run_without_metrics_is_compared_by_its_loss(tmp_path: Path) -> None:
    record = write_run(tmp_path, "", metric_grows=False)
    rewrite(tmp_path / "run.json", metric="loss")
    assert read_run(tmp_path / "run.json").score == record.epochs[-1].test_loss == 0.4
