"""What is written: the same figures as in run.json, in words that are true, in files that open."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mpi_train.report import command, pages, tables, text
from mpi_train.report.collect import Attempt, collect, write_attempts
from mpi_train.report.summary import groups, summarise
from mpi_train.runtime.errors import DataError, UsageError

MakeRun = Callable[..., Any]
ROOT = Path(__file__).parents[2]
TWO_RANKS = {"strategy": "mpi", "world_size": 2, "sync": {"average": "weights", "every": 1}}
TWO_DEVICES = {"strategy": "mirrored", "threads_per_rank": 2, "sync": {"devices": 2}}


@pytest.fixture
def three_repeats(make_run: MakeRun) -> dict[str, list[Any]]:
    """Records of three strategies and the reference, with figures that differ in every digit."""
    made: dict[str, list[Any]] = {"baseline": [], "mpi": [], "mirrored": [], "reference": []}
    for seed, drift in ((1, 1.0), (2, 1.0937), (3, 0.9718)):
        for name, pace, score, fields in (
            ("baseline", 8.1373, 0.9013, {"threads_per_rank": 2}),
            ("mpi", 5.2391, 0.8992, TWO_RANKS),
            ("mirrored", 13.7717, 0.9016, TWO_DEVICES),
            ("reference", 9.4111, 0.9009, {**TWO_RANKS, "world_size": 1}),
        ):
            times = tuple(pace * drift * share for share in (1.21, 1.0, 1.03))
            scores = tuple(score + 0.0011 * seed - drop for drop in (0.04, 0.02, 0.0))
            made[name].append(make_run(f"{name}/{seed}", seed=seed, epoch_s=times, scores=scores, **fields))
    return made


def table_of(text: str) -> dict[str, list[str]]:
    """The first table, by the name of its rows."""
    lines = [line for line in text.partition("## Results in words")[0].splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: row for row in rows}


def test_figures_of_the_table_are_those_of_run_json(
    tmp_path: Path, three_repeats: dict[str, list[Any]]
) -> None:
    table = table_of(text_of(tmp_path))
    assert list(table) == ["Strategy", "baseline", "mirrored", "mpi"]
    for name, size in (("baseline", "1 process"), ("mirrored", "2 devices"), ("mpi", "2 ranks")):
        records = three_repeats[name]
        train_s = sorted(record.train_s for record in records)
        rates = sorted(record.images_per_s for record in records)
        scores = sorted(record.test_accuracy for record in records)
        assert table[name][1] == size
        assert table[name][2] == f"{train_s[1]:.2f} s ({train_s[0]:.2f} to {train_s[2]:.2f})"
        assert table[name][5] == f"{rates[1]:,.0f} ({rates[0]:,.0f} to {rates[2]:,.0f})"
        assert table[name][6] == f"{scores[1]:.4f} ({scores[0]:.4f} to {scores[2]:.4f})"
    # Every repeat drifts alike for all, so that all ratios are those of the paces.
    assert table["baseline"][3:5] == ["1.00x", "-"]
    assert table["mpi"][3:5] == ["1.55x (1.55x to 1.55x)", "90% (90% to 90%)"]
    assert table["mirrored"][3:5] == ["0.59x (0.59x to 0.59x)", "34% (34% to 34%)"]


def text_of(folder: Path) -> str:
    """Return ``report.md`` of the runs below a folder, without its charts."""
    return pages.fill("report.md.j2", sections=sections_of(folder))


def sections_of(folder: Path) -> list[dict[str, Any]]:
    return text.contents([summarise(group) for group in groups(collect([folder]))])


def test_says_what_the_figures_mean(tmp_path: Path, three_repeats: dict[str, list[Any]]) -> None:
    text = text_of(tmp_path)
    assert text.startswith("# Training on Fashion-MNIST: cnn under 3 strategies\n")
    assert (
        "- mpi on 2 ranks trained 1.55x as fast as plain Keras (1.55x to 1.55x), at 0.2 points less accuracy"
        in text
    )
    assert "- mirrored on 2 devices trained more slowly than plain Keras, at 0.59x its speed" in text
    assert "(mpi x1, 1 thread)" in text
    for fact in (
        "batch: 64",
        "Epochs: 3",
        "float32",
        "learning rate 0.001",
        "TensorFlow: 2.21.0",
        "Hosts: n1",
    ):
        assert fact in text
    assert "synthetic" not in text


def test_calls_the_stand_in_synthetic(tmp_path: Path, make_run: MakeRun) -> None:
    make_run("baseline", dataset="synthetic")
    assert text_of(tmp_path).startswith("# Training on synthetic data: cnn")
    caution = text.caution(summarise(collect([tmp_path])))
    assert "synthetic" in caution
    for template in ("report.md.j2", "report.html.j2"):
        assert caution in pages.fill(template, sections=sections_of(tmp_path))


def test_a_difference_within_the_spread_is_no_difference(tmp_path: Path, make_run: MakeRun) -> None:
    for seed, base_s, own_s in ((1, 10.0, 9.0), (2, 10.0, 11.0)):
        make_run(f"baseline/{seed}", seed=seed, epoch_s=(base_s,), scores=(0.90 + 0.01 * seed,))
        make_run(f"mpi/{seed}", seed=seed, epoch_s=(own_s,), scores=(0.905 + 0.01 * seed,), **TWO_RANKS)
    summary = summarise(collect([tmp_path]))
    sentence = text.reading(summary.rows[1], summary)
    assert "neither faster nor slower than plain Keras beyond the spread" in sentence
    assert "within the 1.0 points between the baseline's seeds" in sentence


def test_failures_stalls_and_missing_runs_are_told(tmp_path: Path, make_run: MakeRun) -> None:
    make_run("baseline/1", stalled=(2,), threads_per_rank=2)
    make_run("mpi/1", **{**TWO_RANKS, "world_size": 4})
    listed = [
        ("baseline", 1, "process", 0),
        ("mpi", 4, "rank", 0),
        ("mirrored", 4, "device", 4),
        ("custom", 4, "device", None),
    ]
    write_attempts(
        tmp_path,
        [
            Attempt(
                strategy=strategy,
                workers=workers,
                unit=unit,
                repeat=1,
                seed=1,
                folder=f"{strategy}/1",
                command=f"python jobs/{strategy}.py",
                exit_code=code,
            )
            for strategy, workers, unit, code in listed
        ],
    )
    text = text_of(tmp_path)
    table = table_of(text)
    assert table["mirrored"][1:3] == ["4 devices", "failed (exit code 4)"]
    assert table["custom"][1:3] == ["4 devices", "was not finished"]
    assert "†" in table["baseline"][2]
    assert "baseline on 1 process: 1 of 3 epochs stalled" in text
    assert "interrupted: 1 of its runs are missing" in text
    assert "mpi on 4 ranks had more workers than cores (2 a host)" in text
    assert "python jobs/mirrored.py" in text
    assert list(table) == ["Strategy", "baseline", "mpi", "mirrored", "custom"]


def test_what_happened_to_a_run_on_its_way_is_told(tmp_path: Path, make_run: MakeRun) -> None:
    resumed = {"kind": "resumed", "epoch": 2, "step": 40, "world_size": 2}
    rolled = {"kind": "rolled back", "epoch": 3, "step": 0, "learning_rate": 0.0005}
    make_run("baseline")
    make_run("mpi", history=[resumed, rolled], **TWO_RANKS)
    text = text_of(tmp_path)
    assert "mpi (seed 1) was resumed in epoch 2, after 40 of its steps, on 2 ranks." in text
    assert "mpi (seed 1) was rolled back in epoch 3, after 0 of its steps, after NaN" in text
    assert "its learning rate has been 0.0005 since" in text


def test_unequal_machines_are_told(tmp_path: Path, make_run: MakeRun) -> None:
    make_run("baseline")
    make_run("mpi", environment={"keras": "3.10.0"}, **TWO_RANKS)
    assert "not made under equal conditions. Keras: 3.15.1 / 3.10.0." in text_of(tmp_path)


def test_the_table_fits_80_columns(
    tmp_path: Path, three_repeats: dict[str, list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    Console(width=80).print(tables.comparison(summarise(collect([tmp_path])), "A title").terminal())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    # A title, two lines of names, two lines a row: nothing was wrapped.
    assert len(lines) == 1 + 2 + 2 * 3


def test_refuses_a_folder_that_cannot_be_written(tmp_path: Path, make_run: MakeRun) -> None:
    make_run("baseline")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="expected a folder that can be written"):
        pages.write([tmp_path], tmp_path / "file" / "out")


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small chart in place of all, as drawing takes long."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(pages, "charts", lambda _: {"small": Figure()})


def test_the_command_writes_the_report_again(
    tmp_path: Path, make_run: MakeRun, no_charts: None, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("runs/baseline")
    make_run("runs/mpi", **TWO_RANKS)
    command.main([str(tmp_path / "runs"), "--out", str(tmp_path / "again")])
    assert re.search(r"^baseline +20\.00 s +1\.00x", capsys.readouterr().out, re.MULTILINE)
    assert (tmp_path / "again/report.md").is_file()
    assert (tmp_path / "again/report.html").is_file()


def test_the_command_refuses_a_broken_record(tmp_path: Path, make_run: MakeRun) -> None:
    make_run("baseline")
    (tmp_path / "baseline/run.json").write_text("{")
    with pytest.raises(DataError, match="expected a run record"):
        command.main([str(tmp_path)])
    assert not (tmp_path / "report.md").exists()


def test_the_command_refuses_folders_beside_index_and_compare(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="take no folders and no --out"):
        command.main(["--index", str(tmp_path), str(tmp_path)])


@pytest.mark.mpi_skip
@pytest.mark.launches
def test_the_script_explains_what_it_cannot_do(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "jobs/report.py"), str(tmp_path / "nowhere")]
    missing = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert (missing.returncode, missing.stdout) == (UsageError.exit_code, "")
    assert "expected a folder with runs" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_runs_that_do_other_work_are_compared_apart(
    tmp_path: Path, make_run: MakeRun, no_charts: None
) -> None:
    make_run("baseline")
    make_run("mpi", **TWO_RANKS)
    make_run("other", **{**TWO_RANKS, "global_batch_size": 32, "dtype": "bfloat16"})
    pages.write([tmp_path], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "they are compared in 2 groups:\n\n- global batch 64, float32\n- global batch 32, bfloat16" in text
    assert "# Training on Fashion-MNIST: cnn under one strategy: global batch 32, bfloat16" in text
    assert "](1_small.png)" in text
    page = (tmp_path / "report.html").read_text()
    assert page.count("<section id=") == 2
    assert '<a href="#work-1">global batch 32, bfloat16</a>' in page


def test_a_table_is_the_same_in_markdown_and_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = tables.Table(
        title="Steps", columns=("Part", "On", "Time"), num_names=2, note="Of one rank.",
        rows=[["a|b", "cpu", "1.5 s\n1.0 to 2.0"], ["[bold]", "", "-"]],
    )  # fmt: skip
    assert table.markdown() == (
        "## Steps\n\n| Part | On | Time |\n|:---|:---|---:|\n"
        "| a\\|b | cpu | 1.5 s (1.0 to 2.0) |\n| [bold] |  | - |\n\nOf one rank."
    )
    Console(width=80).print(table.terminal())
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["Steps"], ["Part", "Time"], ["a|b", "1.5", "s"], ["cpu", "1.0-2.0"], ["[bold]", "-"]]
