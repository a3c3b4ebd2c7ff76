"""Which runs count: all below a folder, but of a bench's only those that it listed and that ended well."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mpi_train.report.collect import BENCH_FILE, Attempt, collect, read_attempts, write_attempts
from mpi_train.runtime.errors import DataError


def attempt(folder: str, exit_code: int | None = 0) -> Attempt:
    strategy, _, repeat = folder.partition("/")
    return Attempt(
        strategy=strategy,
        workers=1,
        unit="process",
        repeat=int(repeat),
        seed=int(repeat),
        folder=folder,
        command=f"python jobs/{strategy}.py --seed {repeat}",
        exit_code=exit_code,
    )


def test_takes_all_runs_below_the_folders(tmp_path: Path, make_run: Callable[..., object]) -> None:
    for folder in ("a/one", "a/deep/two", "b"):
        make_run(folder)
    collection = collect([tmp_path / "a", tmp_path / "b"])
    names = [run.path.parent.relative_to(tmp_path).as_posix() for run in collection.runs]
    assert names == ["a/deep/two", "a/one", "b"]
    assert collection.unfinished == []


def test_leaves_out_what_a_later_run_has_put_aside_unless_it_is_named(
    tmp_path: Path, make_run: Callable[..., object]
) -> None:
    for folder in ("mpi", "mpi/earlier/one", "mpi/earlier/two"):
        make_run(folder)

    def names(folder: str) -> list[str]:
        return [run.path.parent.name for run in collect([tmp_path / folder]).runs]

    assert names(".") == names("mpi") == ["mpi"]
    assert names("mpi/earlier") == ["one", "two"]
    assert names("mpi/earlier/one") == ["one"]


def test_takes_a_run_once_from_folders_that_overlap(tmp_path: Path, make_run: Callable[..., object]) -> None:
    make_run("a/one")
    assert len(collect([tmp_path, tmp_path / "a"]).runs) == 1


def test_leaves_out_what_the_bench_did_not_make(tmp_path: Path, make_run: Callable[..., object]) -> None:
    make_run("baseline/1")
    make_run("baseline/2")  # an older bench had more repeats
    make_run("custom/1")  # an older bench's: this time it failed before it opened its folder
    write_attempts(tmp_path, [attempt("baseline/1"), attempt("custom/1", 3), attempt("mpi/1", None)])
    collection = collect([tmp_path])
    assert [run.path for run in collection.runs] == [tmp_path / "baseline/1/run.json"]
    assert [(a.strategy, a.failed) for a in collection.unfinished] == [("custom", True), ("mpi", False)]


def test_the_command_is_the_bench_s_where_there_is_one(
    tmp_path: Path, make_run: Callable[..., object]
) -> None:
    make_run("x/baseline/1")
    make_run("y")
    write_attempts(tmp_path / "x", [attempt("baseline/1")])
    commands = [run.command for run in collect([tmp_path]).runs]
    assert commands == ["python jobs/baseline.py --seed 1", "python jobs/baseline.py"]


def test_attempts_survive_the_file(tmp_path: Path) -> None:
    attempts = [attempt("baseline/1"), attempt("mpi/2", 137), attempt("mpi/3", None)]
    write_attempts(tmp_path, attempts)
    assert read_attempts(tmp_path) == attempts


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"schema_version": 2, "runs": []}',
        '{"schema_version": 1, "runs": [{"strategy": "mpi"}]}',
        json.dumps({"schema_version": 1, "runs": [{**dataclasses.asdict(attempt("a/1")), "folder": "../a"}]}),
        json.dumps({"schema_version": 1, "runs": [{**dataclasses.asdict(attempt("a/1")), "folder": "/a"}]}),
    ],
)
def test_refuses_a_list_that_no_bench_wrote(tmp_path: Path, text: str) -> None:
    (tmp_path / BENCH_FILE).write_text(text)
    with pytest.raises(DataError, match=r"bench\.json: expected a bench's list of runs"):
        collect([tmp_path])


def test_refuses_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a finished run") as caught:
        collect([tmp_path])
    assert caught.value.remedy is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"train_s": 0.0},
        {"train_s": "fast"},
        {"images_per_s": -1.0},
        {"epochs": []},
    ],
)
def test_refuses_impossible_figures(
    tmp_path: Path, make_run: Callable[..., object], fields: dict[str, object]
) -> None:
    make_run("a", **fields)
    with pytest.raises(DataError, match=r"run\.json: expected"):
        collect([tmp_path])
