"""JavaScript run inside HTML pages, in frames of a headless Chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def run_in_pages(tmp_path: Path, pages: Sequence[tuple[str, int]], script: str) -> list[Any]:
    """Return the value of ``script``, the body of a function, in each of ``pages`` (HTML, width in pixels).

    Raises:
        AssertionError: a page logs to the console, as for an exception or a refused request.
    """
    assert CHROMIUM is not None
    frames = []
    for number, (page, width) in enumerate(pages):
        target = f"parent.document.getElementById('result-{number}')"
        run = f"{target}.textContent = JSON.stringify((() => {{ {script} }})())"
        page = page.replace("</body>", f"<script>addEventListener('load', () => {{ {run} }})</script></body>")
        frames.append(
            f'<pre id="result-{number}"></pre><iframe width="{width}" height="900" frameborder="0" '
            f'srcdoc="{html.escape(page)}"></iframe>'
        )
    outer = tmp_path / "frames.html"
    outer.write_text(f'<!doctype html><meta charset="utf-8"><body>{"".join(frames)}</body>', encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--window-size=1400,1000",
         "--dump-dom", outer.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    results = re.findall(r'<pre id="result-\d+">(.*?)</pre>', done.stdout, re.DOTALL)
    return [json.loads(html.unescape(result)) for result in results]
