"""Run ids, and the folder into which previous runs are moved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpi_train.runs.folder import archive_previous_run, is_run_id, new_run_id, started

MOMENT = 1795258942.75  # 2026-11-21 11:02:22 UTC


def test_an_id_holds_start_and_settings_and_is_unique() -> None:
    names = {new_run_id(MOMENT, ("mpi", "4x", "cnn", "fashion_mnist", "s1")) for _ in range(3)}
    assert len(names) == 3
    for name in names:
        assert name[:-5] == "20261121T110222Z-mpi-4x-cnn-fashion_mnist-s1"
        assert is_run_id(name)
        assert started(name) == "2026-11-21T11:02:22Z"


def test_ids_sort_by_time() -> None:
    names = [new_run_id(MOMENT + 1000.0**power, ("mpi",)) for power in range(4)]
    assert sorted(names) == names


@pytest.mark.parametrize("model", ["my.models:build", "../../etc", "a b&c=é/?#" + 300 * "x"])
def test_any_model_gives_an_id_that_is_valid_as_a_folder_name(model: str, tmp_path: Path) -> None:
    name = new_run_id(MOMENT, ("mpi", "1x", model))
    assert is_run_id(name)
    (tmp_path / name).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("text", ["", None, 7, "20261121T110222Z", "20261121T110222Z-../x", "earlier"])
def test_other_texts_are_no_ids(text: object) -> None:
    assert not is_run_id(text)


def test_a_previous_run_is_moved_with_all_its_files_and_no_others(tmp_path: Path) -> None:
    name = new_run_id(MOMENT, ("mpi",))
    (tmp_path / "events.jsonl").write_text(json.dumps({"key": "run_id", "value": name}) + "\n")
    own = {"events.jsonl", "run.json", "epochs.csv", "mistakes.json"}  # the last one of older versions
    for other in ("run.json", "epochs.csv", "mistakes.json", "job.log", "mine.txt"):
        (tmp_path / other).write_text(other)
    (tmp_path / "checkpoints").mkdir()
    assert archive_previous_run(tmp_path) == tmp_path / "earlier" / name
    assert {path.name for path in (tmp_path / "earlier" / name).iterdir()} == own
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "earlier", "job.log", "mine.txt"}
    assert archive_previous_run(tmp_path) is None


@pytest.mark.parametrize("events", [None, "", "{", '{"key": "run_id", "value": "../../away"}', "[1]"])
def test_a_run_without_an_id_is_moved_under_its_time(events: str | None, tmp_path: Path) -> None:
    if events is not None:
        (tmp_path / "events.jsonl").write_text(events)
    (tmp_path / "run.json").write_text("{}")
    folder = archive_previous_run(tmp_path)
    assert folder is not None
    assert folder.parent == tmp_path / "earlier"
    assert "-unnamed-" in folder.name
    assert (folder / "run.json").exists()
