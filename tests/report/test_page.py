"""The page: the figures of run.json, in one file that a browser shows whole, without a network."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpi_train import report
from mpi_train.report import wording
from mpi_train.runs.folder import MISTAKES
from mpi_train.runs.record import RunRecord
from mpi_train.training.totals import RankTimes
from tests.report.browser import CHROMIUM, Browser
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
            worst = [
                {
                    "label": int(rng.integers(10)),
                    "predicted": int(rng.integers(10)),
                    "loss": 9 - number / 7,
                    "pixels": base64.b64encode(rng.integers(0, 256, 784, np.uint8).tobytes()).decode(),
                }
                for number in range(24)
            ]
            (below / f"{name}/{seed}" / MISTAKES).write_text(
                json.dumps({"image_shape": [28, 28, 1], "worst": worst})
            )
    report.write([below], below)
    return Made(below / report.PAGE, records)


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
            _spread([r.train_s for r in own], wording.seconds, " s"),
            "1.00x" if name == "baseline" else _spread(ratios, wording.times),
            "-" if name == "baseline" else _spread(shares, wording.percent),
            _spread([r.images_per_s for r in own], wording.rate),
            _spread([r.test_accuracy for r in own], wording.accuracy),
        ]


def test_every_figure_of_the_other_tables_is_that_of_run_json(made: Made) -> None:
    reached = made.table("Training time to a test accuracy")
    spent = made.table("Where the training time went")
    other = made.table("What else it took")
    for name, row in ROWS.items():
        records = made.records[name]
        for cell, target in zip(reached[row], (0.85, 0.88, 0.90), strict=True):
            times_s = []
            for record in records:
                elapsed_s = accumulate(epoch.train_s for epoch in record.epochs)
                pairs = zip(record.epochs, elapsed_s, strict=True)
                times_s += [s for epoch, s in pairs if epoch.test_accuracy >= target][:1]
            if len(times_s) == len(records):
                assert cell == _spread(times_s, wording.seconds, " s")
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
                "2.53 GB",
            ]
    assert other["mpi, 2 ranks"][3] == "900 kB"
    assert other["mpi, 12 ranks"][3] == "1.65 MB"


def test_every_point_of_the_curves_is_that_of_run_json(made: Made) -> None:
    tips = re.findall(r'data-tip="([^"]*seed[^"]*)"', made.text)
    expected = []
    for name, row in ROWS.items():
        for record in made.records[name] if name != "reference" else []:
            for epoch, after_s in zip(
                record.epochs, accumulate(e.train_s for e in record.epochs), strict=True
            ):
                expected.append(
                    f"{row}, seed {record.seed}, epoch {epoch.epoch}: test accuracy "
                    f"{epoch.test_accuracy:.4f}, training loss {epoch.train_loss:.4f}, after {after_s:,.2f} s"
                )
    # Two curves, each over two axes, in the wide and in the narrow drawing.
    assert sorted(tips) == sorted(8 * expected)


def test_the_confusion_and_the_mistakes_are_those_of_the_run(made: Made) -> None:
    matrices = re.findall(r'<table class="confusion">(.*?)</table>', made.text, re.DOTALL)
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]*)"', made.text)
    assert (len(matrices), len(pictures)) == (5, 5 * 24)
    for number, name in enumerate(("baseline", "mirrored", "mpi", "mpi of many", "reference")):
        cells = re.findall(r"<td class=[^>]*>(\d+)</td>", matrices[number])
        confusion = made.records[name][0].confusion
        assert confusion is not None
        assert [int(cell) for cell in cells] == [count for row in confusion for count in row]
        told = json.loads((made.path.parent / f"{name}/1" / MISTAKES).read_text())["worst"]
        for mistake, picture in zip(told, pictures[24 * number :], strict=False):
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
            assert pixels.tobytes() == base64.b64decode(mistake["pixels"])


def test_the_text_has_the_same_tables(made: Made) -> None:
    text = (made.path.parent / report.TEXT).read_text(encoding="utf-8")
    lines = {}
    for line in text.splitlines():
        if line.startswith("| "):
            cells = line.strip("|").split(" | ")
            lines[tuple(cell.strip() for cell in cells)] = None
    for title in (
        "",
        "Training time to a test accuracy",
        "Where the training time went",
        "What else it took",
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
(() => {
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
  return {faults, boxes: boxes.length};
})()
"""


@pytest.mark.mpi_skip
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_all_of_it(made: Made, tmp_path: Path) -> None:
    with closing(Browser()) as browser:
        grounds = set()
        for width in (1280, 400):
            for dark in (False, True):
                browser.open(made.path, width=width, dark=dark)
                told = browser.evaluate(_LOOK)
                assert told["boxes"] > 500
                assert told["faults"][:9] == [], (width, dark)
                grounds.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(grounds) == 2
        told = browser.evaluate(
            "(() => { const bar = [...document.querySelectorAll('[data-tip]')].find(e => "
            "e.dataset.tip.startsWith('mpi, 2 ranks:') && e.getBoundingClientRect().width); "
            "bar.scrollIntoView({block: 'center'}); const box = bar.getBoundingClientRect(); "
            "bar.dispatchEvent(new PointerEvent('pointermove', {bubbles: true, clientX: box.x + 1, "
            "clientY: box.y + 1})); return [tip.hidden, tip.textContent]; })()"
        )
        assert told == [False, f"mpi, 2 ranks: {made.table('')['mpi, 2 ranks'][0].replace(' s ', ' s (')})"]
        browser.evaluate("document.querySelector('button.key').click()")
        assert browser.evaluate("document.querySelectorAll('.off').length") == 2 * 2 * 2 * 2
        assert browser.complaints == []
        assert {request for request in browser.requests if not request.startswith("data:")} == {
            made.path.resolve().as_uri()
        }
