"""How charts look: on white paper, as files beside ``report.md``; or on a page, which has a theme."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mpi_train.report.summary import Row

# Okabe and Ito's palette, which people with any kind of colour vision can tell apart
# (https://jfly.uni-koeln.de/color/), without its yellow, which is too pale on white. On a dark page each is
# lighter.
_OWN = {
    "baseline": "#6b6b6b",
    "tuned": "#56b4e9",
    "mpi": "#0072b2",
    "mirrored": "#d55e00",
    "custom": "#009e73",
}
_OTHERS = ("#cc79a7", "#e69f00", "#332288", "#882255", "#44aa99", "#aa4499")
_ON_DARK = {
    "#6b6b6b": "#a6a6a6",
    "#56b4e9": "#7cc8f2",
    "#0072b2": "#3f9fdc",
    "#d55e00": "#f08a45",
    "#009e73": "#2fc498",
    "#cc79a7": "#e3a0c6",
    "#e69f00": "#f4bd4f",
    "#332288": "#9a8fe8",
    "#882255": "#d9709f",
    "#44aa99": "#74d0c1",
    "#aa4499": "#d781cb",
}
PARTS = {
    "compute": "#0072b2",
    "moving bytes": "#e69f00",
    "waiting": "#cc79a7",
    "host": "#6b6b6b",
}
"""Where time goes, and the colour of each."""


@dataclass(frozen=True)
class Look:
    """Attributes:
    width_in: Of a chart, in inches.
    font_pt: Size of its text.
    on_page: Whether the page around it has titles and legends, and says what the colours are.
    """

    width_in: float
    font_pt: float
    on_page: bool

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """The time in which charts of this look are drawn and saved."""
        import matplotlib as mpl

        # Text stays text: it can be searched, read aloud, and set in the page's own font.
        with mpl.rc_context({"font.size": self.font_pt, "svg.fonttype": "none"}):
            yield

    @property
    def is_narrow(self) -> bool:
        return self.width_in < 6

    def wrapped(self, *lines: str) -> str:
        """A label beside a bar, in lines that leave room for the bar."""
        width = 22 if self.is_narrow else 36
        return "\n".join(part for line in lines for part in textwrap.wrap(line, width))

    def bars_in(self, labels: Sequence[str]) -> float:
        """The height in inches of bars with these ``labels``."""
        most = max(label.count("\n") + 1 for label in labels)
        return len(labels) * max(0.3, (1.25 * most + 1.1) * self.font_pt / 72)

    @property
    def ink(self) -> str:
        return "#010203" if self.on_page else "#222222"

    @property
    def faint(self) -> str:
        return "#010204" if self.on_page else "#c8c8c8"

    @property
    def paper(self) -> str:
        return "none" if self.on_page else "#ffffff"

    def series(self, number: int, colour: str) -> str:
        """The colour of a row; on a page one that stands for it until ``themed``."""
        return f"#0103{number:02x}" if self.on_page else colour

    def part(self, number: int) -> str:
        """The colour of one of ``PARTS``."""
        return f"#0104{number:02x}" if self.on_page else list(PARTS.values())[number]


PICTURE = Look(width_in=9, font_pt=10, on_page=False)
WIDE = Look(width_in=9.6, font_pt=9, on_page=True)
NARROW = Look(width_in=4.3, font_pt=9.5, on_page=True)


def themed(svg: str, num_series: int) -> str:
    """The drawing with the page's colours in place of those that stand for them."""
    names = {WIDE.ink: "--ink", WIDE.faint: "--faint"}
    names.update({WIDE.series(number, ""): f"--s{number}" for number in range(num_series)})
    names.update({WIDE.part(number): f"--p{number}" for number in range(len(PARTS))})
    for colour, name in names.items():
        svg = svg.replace(colour, f"var({name})")
    return svg


def theme(colours: Sequence[str], prefix: str) -> dict[str, str]:
    """CSS variables of ``colours``, each in light and dark."""
    return {f"--{prefix}{n}": f"light-dark({c}, {_ON_DARK[c]})" for n, c in enumerate(colours)}


def colours_of(rows: Sequence[Row]) -> list[str]:
    """A colour a row: its strategy's own, so that it is the same in every report, where that is free."""
    own, others = dict(_OWN), itertools.cycle(_OTHERS)
    return [own.pop(row.strategy) if row.strategy in own else next(others) for row in rows]
