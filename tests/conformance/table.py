"""Run the whole conformance suite and write docs/conformance.md: ``make conformance``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "conformance.md"
HEADER = """# Conformance

Written by `make conformance`. Each form of model (`tests/conformance/models.py`) is trained for 21 steps in
each strategy and compared with plain Keras `fit` on the same global batches.

- **exact**: weights, loss and metrics equal those of `fit`; the number is the largest difference of a weight.
- **statistical**: random layers draw other numbers, or BatchNorm normalises each part of a batch by itself;
  the number is the relative difference of the losses.
- **refused**: the strategy cannot train the model and says so before the first step, with code 2.

"""


def run(environment: dict[str, str], chosen: str, ranks: int = 1) -> int:
    """Run the chosen cells on so many ranks; return pytest's exit code."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "not slurm", "-k", chosen, "tests/conformance"]
    if ranks > 1:
        mpiexec = str(Path(sys.executable).with_name("mpiexec"))
        pytest = [mpiexec, "-n", str(ranks), *pytest, "--with-mpi"]
    return subprocess.run(pytest, cwd=ROOT, env=environment, check=False).returncode


def main() -> int:
    """Run all cells in one process and on two ranks; return 0 if all are as expected."""
    with tempfile.TemporaryDirectory() as folder:
        cells = Path(folder) / "cells.jsonl"
        environment = {**os.environ, "CONFORMANCE": str(cells)}
        codes = [
            run(environment, "not multiworker"),
            run(environment, "not multiworker", ranks=2),
            # TensorFlow makes one cluster in the life of a process, before anything else.
            run(environment, "multiworker", ranks=2),
        ]
        found = [json.loads(line) for line in cells.read_text(encoding="utf-8").splitlines()]
    write(found)
    return max(codes)


def write(found: list[list[str]]) -> None:
    """Write the page of these cells: form, what is particular about it, strategy, verdict, detail."""
    strategies = list(dict.fromkeys(strategy for _, _, strategy, _, _ in found))
    rows = {(form, text): {} for form, text, *_ in found}
    refusals = {}
    for form, text, strategy, verdict, detail in found:
        rows[form, text][strategy] = verdict if verdict == "refused" else f"{verdict} {detail}"
        if verdict == "refused":
            refusals[f"{strategy}, {form}"] = detail.splitlines()[0]
    lines = [f"| Model | {' | '.join(strategies)} |", f"|:---|{':---|' * len(strategies)}"]
    for (form, text), cells in rows.items():
        lines.append(f"| `{form}`: {text} | {' | '.join(cells.get(name, '') for name in strategies)} |")
    lines += ["", "## What is refused", "", *(f"- {name}: {text}" for name, text in refusals.items())]
    PAGE.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
