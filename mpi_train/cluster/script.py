"""A job script: a template with other numbers in its ``#SBATCH`` lines, and its flags written out."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpi_train.runtime.errors import UsageError

TEMPLATES = {
    "baseline": "baseline.sh",
    "mpi": "mpi_4nodes.sh",
    "mirrored": "mirrored.sh",
    "custom": "custom.sh",
    "multiworker": "multiworker_4nodes.sh",
    "pipeline": "pipeline_2nodes.sh",
    "federated": "federated.sh",
    "bench": "bench.sh",
    "prepare_data": "prepare_data.sh",
    "report": "report.sh",
}
"""What can be submitted, and its file in ``slurm/``."""

ONE_PROCESS = frozenset(TEMPLATES) - {"mpi", "multiworker", "pipeline", "federated"}

_LINE = re.compile(r"#SBATCH --(?P<name>[a-z-]+)(?:=(?P<value>\S+))?")


@dataclass(frozen=True)
class Resources:
    """What a job asks Slurm for; None leaves what the template says.

    Attributes:
        nodes, ntasks_per_node, cpus_per_task, gpus_per_node: Counts.
        time: As sbatch takes it: ``01:30:00``, ``2-00``.
        partition, account, qos: Names that the site gave.
    """

    nodes: int | None = None
    ntasks_per_node: int | None = None
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            flag = "--" + name.replace("_", "-")
            if isinstance(value, int) and value < 1:
                raise UsageError(f"{flag}: expected at least 1. Got: {value}")
            if isinstance(value, str) and not re.fullmatch(r"[\w.:,+-]+", value):
                raise UsageError(f"{flag}: expected a word that sbatch takes. Got: {value!r}")

    def lines(self) -> dict[str, str]:
        """What is asked for, by the names of sbatch's flags."""
        return {name.replace("_", "-"): str(value) for name, value in vars(self).items() if value is not None}


def template(strategy: str, folder: Path) -> str:
    """The text of the template of ``strategy``, from ``folder``.

    Raises:
        UsageError: there is no such strategy, or not the file.
    """
    if strategy not in TEMPLATES:
        near = difflib.get_close_matches(strategy, TEMPLATES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"expected one of {', '.join(TEMPLATES)}. Got: {strategy}.{hint}")
    path = folder / TEMPLATES[strategy]
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"expected a template in {path}. Got: {error.strerror}", remedy="cd to the clone"
        ) from error


def compose(strategy: str, text: str, resources: Resources, flags: Sequence[str]) -> str:
    """The script that runs ``strategy`` with these ``resources`` and ``flags``.

    Args:
        strategy: One of ``TEMPLATES``.
        text: Its template.
        resources: What takes the place of the template's own lines, or is added to them.
        flags: Of the job; they are written where the template passes on its own.

    Raises:
        UsageError: several nodes or tasks for what is one process.
    """
    asked = resources.lines()
    if strategy in ONE_PROCESS:
        for name in ("nodes", "ntasks-per-node"):
            if asked.get(name, "1") != "1":
                raise UsageError(
                    f"--{name}: {strategy} is one process. Got: {asked[name]}",
                    remedy="mpi, multiworker, pipeline and federated take several",
                )
    out: list[str] = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            if asked and out and out[-1].startswith("#SBATCH"):
                out += [f"#SBATCH --{name}={value}" for name, value in asked.items()]
                asked = {}
            out.append(line)
        else:
            name = match["name"]
            out.append(f"#SBATCH --{name}={asked.pop(name)}" if name in asked else line)
    return "\n".join(out).replace(' "$@"', _words(flags)) + "\n"


def _words(flags: Sequence[str]) -> str:
    return f" {shlex.join(flags)}" if flags else ""


def shown(fields: Mapping[str, str]) -> str:
    """A job's state in one line, from the fields that ``scontrol show job`` prints."""
    parts = [fields.get("JobState", "UNKNOWN")]
    if parts == ["PENDING"] and fields.get("Reason", "None") != "None":
        parts.append(f"({fields['Reason']})")
    if fields.get("NodeList", "(null)") not in ("(null)", ""):
        parts.append(f"on {fields['NodeList']}")
    if fields.get("Restarts", "0") != "0":
        parts.append(f"restarts {fields['Restarts']}")
    return " ".join(parts)
