"""The page of all runs below a folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpi_train.report import command, index
from mpi_train.runtime.errors import UsageError
from tests.report.browser import needs_browser, run_in_pages

MakeRun = Callable[..., Any]
TWO_RANKS = {"strategy": "mpi", "world_size": 2, "sync": {"average": "weights", "every": 1}}


@pytest.fixture
def page(tmp_path: Path, make_run: MakeRun) -> Path:
    """The index of a bench with a report, of a run apart, and of a record that cannot be read."""
    for seed in (1, 2):
        make_run(f"bench/baseline/{seed}", seed=seed)
        make_run(f"bench/mpi/{seed}", seed=seed, epoch_s=(4.0, 3.0, float(seed)), **TWO_RANKS)
    (tmp_path / "bench/report.html").write_text("")
    make_run("by hand #1", model="mlp", dtype="bfloat16")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/run.json").write_text("{")
    return index.write(tmp_path)


def test_lists_every_run_with_the_figures_of_its_record(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    rows = re.findall(r"<tr><td.*?</tr>", text)
    cells = {}
    for row in rows:
        plain = [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]
        cells[plain[1]] = plain[2:]
    assert cells == {
        "bench/baseline/1": ["baseline", "1 process", "cnn", "fashion_mnist", "64", "3", "1", "float32",
                             "20.00", "10,000", "0.9000", "report"],
        "bench/baseline/2": ["baseline", "1 process", "cnn", "fashion_mnist", "64", "3", "2", "float32",
                             "20.00", "10,000", "0.9000", "report"],
        "bench/mpi/1": ["mpi", "2 ranks", "cnn", "fashion_mnist", "64", "3", "1", "float32",
                        "8.00", "40,000", "0.9000", "report"],
        "bench/mpi/2": ["mpi", "2 ranks", "cnn", "fashion_mnist", "64", "3", "2", "float32",
                        "9.00", "25,000", "0.9000", "report"],
        "by hand #1": ["baseline", "1 process", "mlp", "fashion_mnist", "64", "3", "1", "bfloat16",
                       "20.00", "10,000", "0.9000", ""],
    }  # fmt: skip
    assert 'href="by%20hand%20%231/run.json"' in text
    assert 'href="bench/report.html"' in text
    assert "broken/run.json: expected a run record" in text


_USE = """
  const shown = () => [...document.querySelectorAll("tbody tr")].filter((row) => !row.hidden)
    .map((row) => row.cells[1].textContent);
  const search = (words) => { document.getElementById("words").value = words;
    document.getElementById("words").dispatchEvent(new Event("input")); };
  const seen = [shown().length];
  search("mpi RANKS");
  seen.push(shown().sort(), document.getElementById("shown").textContent);
  const button = [...document.querySelectorAll("th button")].find((one) => one.textContent === "Time [s]");
  button.click();
  seen.push(shown());
  button.click();
  seen.push(shown());
  search("");
  const model = document.querySelectorAll("select")[1];
  model.value = "mlp";
  model.dispatchEvent(new Event("change"));
  return [...seen, shown()];
"""


@pytest.mark.mpi_skip
@needs_browser
def test_filters_and_sorts(page: Path, tmp_path: Path) -> None:
    ((every, found, number, descending, ascending, chosen),) = run_in_pages(
        tmp_path, [(page.read_text(encoding="utf-8"), 1280)], _USE
    )
    assert (every, number) == (5, "2")
    assert found == ascending == ["bench/mpi/1", "bench/mpi/2"]
    assert descending == ["bench/mpi/2", "bench/mpi/1"]
    assert chosen == ["by hand #1"]


def test_the_command_writes_it_and_compares_two_runs(
    tmp_path: Path, page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page.unlink()
    command.main(["--index", str(tmp_path)])
    assert capsys.readouterr().out == f"index: {page}\n"
    assert page.is_file()
    monkeypatch.chdir(tmp_path)
    command.main(["--compare", "bench/baseline/1", "bench/mpi/2"])
    lines = {line.split("  ")[0]: line.split("  ")[1:] for line in capsys.readouterr().out.splitlines()}
    figures = {name: [word.strip() for word in words if word.strip()] for name, words in lines.items()}
    assert figures["strategy"] == ["baseline", "mpi"]
    assert figures["seed"] == ["1", "2"]
    assert "dtype" not in figures
    assert figures["training time [s]"] == ["20.00", "9.00", "0.450"]
    assert figures["images/s"] == ["10,000", "25,000", "2.500"]
    assert figures["time to 0.90 [s]"] == ["20.00", "9.00", "0.450"]
    with pytest.raises(
        UsageError, match=r"--compare: expected the folder of a finished run, or its id\. Got: bench"
    ):
        command.main(["--compare", "bench", "bench/mpi/1"])


def test_a_folder_without_runs_has_an_index_that_says_so(tmp_path: Path) -> None:
    assert "No run here yet" in index.write(tmp_path).read_text(encoding="utf-8")
