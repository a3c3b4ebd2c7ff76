"""The page of all runs below a folder."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mpi_train.report import index
from tests.report.browser import CHROMIUM, Browser

MakeRun = Callable[..., Any]
ROOT = Path(__file__).parents[2]
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


@pytest.mark.mpi_skip
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_filters_and_sorts(page: Path) -> None:
    with closing(Browser()) as browser:
        browser.open(page, width=1280, dark=False)

        def shown() -> list[str]:
            rows = "[...document.querySelectorAll('tbody tr')].filter(row => !row.hidden)"
            told: list[str] = browser.evaluate(f"{rows}.map(row => row.cells[1].textContent)")
            return told

        def type_words(words: str) -> None:
            browser.evaluate(f"words.value = {words!r}; words.dispatchEvent(new Event('input'))")

        assert len(shown()) == 5
        type_words("mpi RANKS")
        assert sorted(shown()) == ["bench/mpi/1", "bench/mpi/2"]
        assert browser.evaluate("document.getElementById('shown').textContent") == "2"
        for name in ("Time [s]", "Time [s]"):
            browser.evaluate(
                f"[...document.querySelectorAll('th button')].find(b => b.textContent === {name!r}).click()"
            )
        assert shown() == ["bench/mpi/1", "bench/mpi/2"]
        type_words("")
        browser.evaluate(
            "(() => { const s = document.querySelectorAll('select')[1]; s.value = 'mlp'; "
            "s.dispatchEvent(new Event('change')); })()"
        )
        assert shown() == ["by hand #1"]
        assert browser.complaints == []


@pytest.mark.mpi_skip
def test_the_script_writes_it_and_compares_two_runs(tmp_path: Path, page: Path) -> None:
    page.unlink()
    done = run_script("--index", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, f"index: {page}\n"), done.stderr
    assert page.is_file()
    done = run_script("--compare", "bench/baseline/1", "bench/mpi/2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = {line.split("  ")[0]: line.split("  ")[1:] for line in done.stdout.splitlines()}
    figures = {name: [word.strip() for word in words if word.strip()] for name, words in lines.items()}
    assert figures["strategy"] == ["baseline", "mpi"]
    assert figures["seed"] == ["1", "2"]
    assert "dtype" not in figures
    assert figures["training time [s]"] == ["20.00", "9.00", "0.450"]
    assert figures["images/s"] == ["10,000", "25,000", "2.500"]
    assert figures["time to 0.90 [s]"] == ["20.00", "9.00", "0.450"]
    missing = run_script("--compare", "bench", "bench/mpi/1", cwd=tmp_path)
    assert missing.returncode == 2
    assert "--compare: expected the folder of a finished run, or its id. Got: bench" in missing.stderr


def run_script(*flags: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(ROOT / "jobs/report.py"), *flags]
    return subprocess.run(script, capture_output=True, text=True, timeout=60, cwd=cwd)
