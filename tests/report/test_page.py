"""The page: the figures of run.json, in one file that a browser shows whole, without a network."""

from __future__ import annotations

import html
import re
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from mpi_train.report import pages, tables
from mpi_train.runs.record import RunRecord
from mpi_train.training.totals import RankTimes
from tests.report.browser import needs_browser, run_in_pages
from tests.report.conftest import write_run

CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
MPI = {"strategy": "mpi", "sync": {"average": "weights", "every": 1}}


class Made:
    """A page, and the records that it is made of by row, a record a seed."""

    def __init__(self, path: Path, records: dict[str, list[RunRecord]]) -> None:
        self.path, self.records = path, records
        self.text = path.read_text(encoding="utf-8")

    def table(self, title: str) -> dict[str, list[str]]:
        """The rows of the table below a heading, by their first two cells; of the first one for no title."""
        start = self.text.index(f"<h2>{title}</h2>") if title else 0
        body = self.text[self.text.index("<tbody>", start) : self.text.index("</tbody>", start)]
        rows = [
            [_plain(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]
            for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
        ]
        return {", ".join(row[:2]): row[2:] for row in rows}


def _plain(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


def _confusion(rng: np.random.Generator, accuracy: float) -> list[list[int]]:
    counts = rng.integers(0, 60, (10, 10))
    np.fill_diagonal(counts, round(1000 * accuracy))
    return [[int(count) for count in row] for row in counts]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    below, rng = tmp_path_factory.mktemp("page"), np.random.default_rng(1)
    records: dict[str, list[RunRecord]] = {}
    for seed in (1, 2):
        for name, pace, score, ranks, fields in (
            ("baseline", 8.1373, 0.9013, 0, {"threads_per_rank": 2}),
            ("mirrored", 13.7717, 0.9016, 0, {"strategy": "mirrored", "sync": {"devices": 2}}),
            ("mpi", 5.2391, 0.8992, 2, {**MPI, "world_size": 2, "bytes_per_step": 900136.0}),
            ("mpi of many", 1.8391, 0.8962, 12, {**MPI, "world_size": 12, "bytes_per_step": 1650248.0}),
            ("reference", 9.4111, 0.9009, 1, {**MPI, "bytes_per_step": 0.0}),
        ):
            spent = [
                RankTimes(0.7 * pace + 0.013 * rank, 0.2 * pace, 0.05, 0.04, 844_327_568)
                for rank in range(ranks)
            ]
            record = write_run(
                below,
                f"{name}/{seed}",
                seed=seed,
                epoch_s=tuple(pace * (1 + 0.0317 * seed) * share for share in (1.21, 1.0, 1.03)),
                scores=tuple(score + 0.0011 * seed - drop for drop in (0.04, 0.0213, 0.0)),
                by_rank=tuple(spent),
                class_names=CLASSES,
                confusion=_confusion(rng, score),
                peak_rss_mib=600 + 100 * rng.random(),
                startup_s=3 + rng.random(),
                **fields,
            )
            records.setdefault(name, []).append(record)
    pages.write([below], below)
    return Made(below / pages.PAGE, records)


ROWS = {
    "baseline": "baseline, 1 process",
    "mirrored": "mirrored, 2 devices",
    "mpi": "mpi, 2 ranks",
    "mpi of many": "mpi, 12 ranks",
    "reference": "mpi, 1 rank",
}


def _spread(values: list[float], shown: Any, unit: str = "") -> str:
    return f"{shown(median(values))}{unit} {shown(min(values))} to {shown(max(values))}"


def test_every_figure_of_the_comparison_is_that_of_run_json(made: Made) -> None:
    table = made.table("")
    assert list(table) == [ROWS[name] for name in ("baseline", "mirrored", "mpi", "mpi of many")]
    for name, row in ROWS.items():
        if name == "reference":
            continue
        own, base, one = (made.records[key] for key in (name, "baseline", "reference"))
        ratios = [b.train_s / r.train_s for r, b in zip(own, base, strict=True)]
        workers = {"mirrored": 2, "mpi": 2, "mpi of many": 12}.get(name, 1)
        shares = [r.images_per_s / workers / o.images_per_s for r, o in zip(own, one, strict=True)]
        assert table[row] == [
            _spread([r.train_s for r in own], tables.seconds, " s"),
            "1.00x" if name == "baseline" else _spread(ratios, tables.times),
            "-" if name == "baseline" else _spread(shares, tables.percent),
            _spread([r.images_per_s for r in own], tables.rate),
            _spread([r.test_accuracy for r in own], tables.accuracy),
        ]


def test_every_figure_of_the_other_tables_is_that_of_run_json(made: Made) -> None:
    reached = made.table("Training time to a test accuracy")
    spent = made.table("Where the training time went")
    other = made.table("Other costs")
    for name, row in ROWS.items():
        records = made.records[name]
        for cell, target in zip(reached[row], (0.85, 0.88, 0.90), strict=True):
            times_s = []
            for record in records:
                elapsed_s = accumulate(epoch.train_s for epoch in record.epochs)
                pairs = zip(record.epochs, elapsed_s, strict=True)
                times_s += [s for epoch, s in pairs if epoch.test_accuracy >= target][:1]
            if len(times_s) == len(records):
                assert cell == _spread(times_s, tables.seconds, " s")
            else:
                assert cell == (f"{times_s[0]:.2f} s, 1 of 2 runs" if times_s else "-")
        assert other[row][0] == _spread([r.startup_s for r in records], lambda s: f"{s:.2f} s")
        assert other[row][4] == _spread([r.peak_rss_mib for r in records], lambda mib: f"{mib:,.0f} MiB")
        first = records[0]
        told = [line for line in spent if line.startswith(f"{row},")]
        # Of many ranks those that computed least and most are shown.
        ranks = [0, 1, 2, 3, 8, 9, 10, 11] if name == "mpi of many" else range(len(first.epochs[0].by_rank))
        assert len(told) == len(ranks)
        for line, rank in zip(told, ranks, strict=True):
            times = [epoch.by_rank[rank] for epoch in first.epochs]
            assert spent[line] == [
                f"{sum(t.compute_s for t in times):.2f} s",
                f"{sum(t.moving_s for t in times):.2f} s",
                f"{sum(t.waiting_s for t in times):.2f} s",
                f"{sum(t.host_s for t in times):.2f} s",
                f"{sum(sum(t.parts_s) for t in times):.2f} s",
                "0.00 s",
                "2.53 GB",
            ]
    assert other["mpi, 2 ranks"][3] == "900 kB"
    assert other["mpi, 12 ranks"][3] == "1.65 MB"


def test_every_point_of_the_curves_is_that_of_run_json(made: Made) -> None:
    start = made.text.index("<summary>All epochs</summary>")
    body = made.text[start : made.text.index("</table>", start)]
    rows = [
        [_plain(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]
        for row in re.findall(r"<tr><td(?:.*?)</tr>", body, re.DOTALL)
    ]
    expected = [
        [*row.split(", "), str(record.seed), str(epoch.epoch), f"{after_s:,.2f} s", f"{epoch.train_loss:.4f}",
         f"{epoch.test_accuracy:.4f}"]
        for name, row in ROWS.items()
        for record in made.records[name]
        for epoch, after_s in zip(record.epochs, accumulate(e.train_s for e in record.epochs), strict=True)
    ]  # fmt: skip
    assert rows == expected


def test_every_point_of_the_scaling_is_that_of_run_json(made: Made) -> None:
    scaling = made.table("Scaling")
    for name, workers in (("mirrored", 2), ("mpi", 2), ("mpi of many", 12), ("reference", 1)):
        own, one = made.records[name], made.records["reference"]
        ratio = median(r.images_per_s / o.images_per_s for r, o in zip(own, one, strict=True))
        assert scaling[ROWS[name]] == [f"{ratio:.2f}x", f"{ratio / workers:.0%}"]
    assert len(scaling) == 4


def test_the_confusion_is_that_of_the_run(made: Made) -> None:
    matrices = re.findall(r'<table class="confusion">(.*?)</table>', made.text, re.DOTALL)
    assert len(matrices) == 5
    for matrix, name in zip(
        matrices, ("baseline", "mirrored", "mpi", "mpi of many", "reference"), strict=True
    ):
        cells = re.findall(r"<td class=[^>]*>(\d+)</td>", matrix)
        confusion = made.records[name][0].confusion
        assert confusion is not None
        assert [int(cell) for cell in cells] == [count for row in confusion for count in row]


def test_every_chart_is_in_the_page_and_beside_the_text(made: Made) -> None:
    text = (made.path.parent / pages.TEXT).read_text(encoding="utf-8")
    charts = re.findall(r"!\[([^]]*)\]\((\w+\.png)\)", text)
    assert [file for _, file in charts] == [
        f"{name}.png"
        for name in ("training_time", "test_accuracy", "learning_curves", "learning_curves_time",
                     "speedup_over_one", "efficiency", "time_split", "memory")
    ]  # fmt: skip
    for caption, file in charts:
        data = (made.path.parent / file).read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
        assert width == 735
        assert height > 200
        assert made.text.count(f'<svg role="img" aria-label="{caption}"') == 1
    assert made.text.count("<svg ") == len(charts)
    assert "#222222" not in made.text


def test_the_text_has_the_same_tables(made: Made) -> None:
    text = (made.path.parent / pages.TEXT).read_text(encoding="utf-8")
    lines = {}
    for line in text.splitlines():
        if line.startswith("| "):
            cells = line.strip("|").split(" | ")
            lines[tuple(cell.strip() for cell in cells)] = None
    for title in (
        "",
        "Training time to a test accuracy",
        "Where the training time went",
        "Other costs",
        "Scaling",
    ):
        for names, cells in made.table(title).items():
            shown = [cell.replace(" (", " ").replace(")", "") for cell in cells]
            assert any(
                ", ".join(line[:2]) == names
                and [cell.replace(" (", " ").replace(")", "") for cell in line[2:]] == shown
                for line in lines
            ), (title, names)


def test_a_page_needs_nothing_else(made: Made) -> None:
    assert "default-src 'none'" in made.text
    links = re.findall(r'(?:src|href)="([^"]*)"', made.text)
    assert {link[:5] for link in links} <= {"data:", "#work"} | {link[:5] for link in links if link[0] == "#"}
    assert "@import" not in made.text


_LOOK = """
  for (const each of document.querySelectorAll("details")) each.open = true;
  const boxes = [], faults = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, owner = node.parentElement;
    if (!node.textContent.trim() || owner.closest("script, style")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) {
      if (box.width < 1 || box.height < 1) continue;
      boxes.push([box, node.textContent.trim().slice(0, 40)]);
      if (box.left < -1 || box.right > innerWidth + 1) faults.push(["beyond the edge", node.textContent]);
      const svg = owner.closest("svg");
      if (svg) {
        const edge = svg.getBoundingClientRect();
        if (box.left < edge.left - 1 || box.right > edge.right + 1 || box.top < edge.top - 1
            || box.bottom > edge.bottom + 1) faults.push(["cut off", node.textContent.trim()]);
      }
    }
  }
  boxes.sort((a, b) => a[0].top - b[0].top);
  for (let i = 0; i < boxes.length; i++)
    for (let j = i + 1; j < boxes.length && boxes[j][0].top < boxes[i][0].bottom; j++) {
      const [a, b] = [boxes[i][0], boxes[j][0]];
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      // Boxes of letters are higher than the letters: lines set solid touch.
      if (wide > 1 && high > 0.35 * Math.min(a.height, b.height))
        faults.push(["overlap", boxes[i][1], boxes[j][1]]);
    }
  if (document.documentElement.scrollWidth > innerWidth) faults.push(["wider than the window"]);
  const svgs = [...document.querySelectorAll("svg")], text = svgs[0].querySelector("text");
  return {
    faults, boxes: boxes.length,
    columns: new Set(svgs.map((svg) => Math.round(svg.getBoundingClientRect().left))).size,
    letters: text.getBoundingClientRect().height,
    ground: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(text).fill,
  };
"""


@pytest.mark.mpi_skip
@needs_browser
def test_a_browser_shows_all_of_it(made: Made, tmp_path: Path) -> None:
    scheme = "color-scheme: light dark;"
    assert scheme in made.text
    shown = [
        (made.text.replace(scheme, f"color-scheme: {only};"), width)
        for width in (1280, 400)
        for only in ("light", "dark")
    ]
    looks = run_in_pages(tmp_path, shown, _LOOK)
    for look, (_, width) in zip(looks, shown, strict=True):
        assert look["boxes"] > 500
        assert look["faults"][:9] == [], width
        # Two charts abreast on a wide screen; letters of at least 10 pixels on both.
        assert look["columns"] == (2 if width == 1280 else 1)
        assert look["letters"] > 10
    assert len({look["ground"] for look in looks}) == len({look["ink"] for look in looks}) == 2
