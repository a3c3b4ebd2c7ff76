"""A chart as SVG that stands within a page: themed by it, read aloud, with words behind its points."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree as ET

import matplotlib as mpl

from mpi_train.report.charts import Chart
from mpi_train.report.look import themed

_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_REFERENCES = re.compile(r"url\(#([^)]+)\)")


def inline(chart: Chart, salt: str, num_series: int) -> str:
    """The chart as an ``svg`` element; within its look's ``drawing()``.

    Args:
        chart: What is drawn.
        salt: Makes the ids in it its own on the page.
        num_series: Rows that have a colour.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": salt}):
        chart.figure.savefig(buffer, format="svg", transparent=True)
    ET.register_namespace("", _SVG[1:-1])
    ET.register_namespace("xlink", _LINK[1:].partition("}")[0])
    root = ET.fromstring(buffer.getvalue())
    for metadata in root.findall(f"{_SVG}metadata"):
        root.remove(metadata)
    _strip_styles(root)
    for gid, tips in chart.tips.items():
        _add_tips(root, gid, tips)
    _drop_ids(root)
    for size in ("width", "height"):
        del root.attrib[size]
    root.set("role", "img")
    root.set("aria-label", chart.caption)
    return themed(ET.tostring(root, encoding="unicode"), num_series)


def _strip_styles(root: ET.Element) -> None:
    # Within a page it would hold for everything on it.
    for definitions in root.iter(f"{_SVG}defs"):
        for style in definitions.findall(f"{_SVG}style"):
            definitions.remove(style)


def _add_tips(root: ET.Element, gid: str, tips: list[str]) -> None:
    """Puts each of ``tips`` on its point, or the only one on the whole artist."""
    group = next(element for element in root.iter() if element.get("id") == gid)
    points = list(group.iter(f"{_SVG}use"))
    for element, tip in zip(points if len(points) == len(tips) else [group], tips, strict=True):
        element.set("data-tip", tip)
    if gid.startswith("series-"):
        group.set("data-series", gid.split("-")[1])


def _drop_ids(root: ET.Element) -> None:
    """Removes the ids that nothing refers to: they would be the same in every chart."""
    used = {element.get(_LINK, "")[1:] for element in root.iter()}
    used |= {name for element in root.iter() for text in element.attrib.values()
             for name in _REFERENCES.findall(text)}  # fmt: skip
    for element in root.iter():
        if element.get("id") is not None and element.get("id") not in used:
            del element.attrib["id"]
