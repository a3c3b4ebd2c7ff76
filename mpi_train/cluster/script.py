"""Job scripts: templates of slurm/ with other values in their ``#SBATCH`` lines and flags written out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import at_least, flag_of, option

_LINE = re.compile(r"#SBATCH --(?P<name>[a-z-]+)(?:=\S+)?")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources that a job asks Slurm for; None keeps the value of the template."""

    nodes: int | None = option(None, "number of nodes (default of all resources: the template's)", "N")
    ntasks_per_node: int | None = option(None, "ranks per node", "N")
    cpus_per_task: int | None = option(None, "cores per rank", "N")
    gpus_per_node: int | None = option(None, "GPUs per node; each rank takes one", "N")
    time: str | None = option(None, "time limit, such as 00:30:00", "TIME")
    partition: str | None = option(None, "partition to queue in", "NAME")
    account: str | None = option(None, "account to charge", "NAME")
    qos: str | None = option(None, "quality of service", "NAME")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int):
                at_least(flag_of(name), value, 1)
            elif value is not None and not re.fullmatch(r"[\w.:,+-]+", value):
                raise UsageError(f"{flag_of(name)}: expected a word that sbatch accepts. Got: {value!r}")

    def asked(self) -> dict[str, str]:
        """Return the values that are not None, by the names of sbatch's options."""
        return {flag_of(k).lstrip("-"): str(v) for k, v in vars(self).items() if v is not None}


def compose(
    job: str, resources: Resources, flags: Sequence[str], *, ranks: bool, folder: Path = Path("slurm")
) -> str:
    """Return the script that runs a command.

    Args:
        job: Name of the command.
        resources: Values that replace those of the template, or are added to them.
        flags: Flags of the command, written out where the template passes on its own.
        ranks: True if the command runs as MPI ranks, False if it is one process.
        folder: Folder of the templates.

    Raises:
        UsageError: several nodes or tasks for one process, or no template in ``folder``.
    """
    asked, words = resources.asked(), list(flags)
    for name in () if ranks else ("nodes", "ntasks-per-node"):
        if asked.get(name, "1") != "1":
            raise UsageError(f"--{name}: {job} is one process. Got: {asked[name]}")
    general = folder / ("ranks.sh" if ranks else "process.sh")
    for path in (folder / f"{job}.sh", *folder.glob(f"{job}_*nodes.sh"), general):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if "\n#SBATCH" in text:  # otherwise the script only names its successor
            break
    else:
        raise UsageError(f"expected a template in {general}. Got: none", remedy="cd to the clone")
    if path == general:
        asked["job-name"], words = job, [job, *flags]
    out: list[str] = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None and out and out[-1].startswith("#SBATCH"):
            out += [f"#SBATCH --{name}={value}" for name, value in asked.items()]
        name = match["name"] if match else ""
        out.append(f"#SBATCH --{name}={asked.pop(name)}" if name in asked else line)
    return "\n".join(out).replace(' "$@"', f" {shlex.join(words)}" if words else "") + "\n"
