"""The submit command: make a job script for a strategy, the bench or the plan, and submit it to Slurm.

A script is a template of slurm/ with other values in its ``#SBATCH`` lines and the flags written out.
"""

from __future__ import annotations

import difflib
import pkgutil
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mpi_train.cluster import queue
from mpi_train.runtime import launch
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import Parser, as_flags, at_least, flag_of, from_values, option
from mpi_train.strategies.registry import STRATEGIES

OTHERS = {
    "bench": "mpi_train.benchmarks.bench:BenchConfig",
    "plan": "mpi_train.benchmarks.config:PlanConfig",
}
"""Commands that are not strategies, and their config, which is imported if it is needed."""

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
    """Return the script that runs the command ``job``, as MPI ranks (``ranks``) or as one process.

    The ``resources`` replace those of the template in ``folder``, or are added to them. The ``flags`` are
    written out where the template passes on its own.

    Raises:
        UsageError: several nodes or tasks for one process, or no template in ``folder``.
    """
    asked, words = resources.asked(), list(flags)
    if job == "plan":  # a neighbour's load would be in its measurements
        asked = {"exclusive": "", "time": "00:15:00", **asked}
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
            out += [f"#SBATCH --{name}={value}".rstrip("=") for name, value in asked.items()]
        name = match["name"] if match else ""
        out.append(f"#SBATCH --{name}={asked.pop(name)}" if name in asked else line)
    return "\n".join(out).replace(' "$@"', f" {shlex.join(words)}" if words else "") + "\n"


def main(argv: Sequence[str]) -> None:
    """Submit what the flags ``argv`` ask for."""
    names = [*STRATEGIES, *OTHERS]
    parser = Parser(prog=launch.typed("submit"), description="Make a job script and submit it to Slurm.")
    parser.add_argument("strategy", help=", ".join(names))
    parser.add_options(Resources, title="resources")
    parser.add_argument("--print", action="store_true", help="print the script instead of submitting it")
    parser.add_argument("--wait", action="store_true", help="follow the job to its end")
    name = argv[0] if argv else "--help"
    if name.startswith("-"):
        parser.parse_args([name])
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"expected one of {', '.join(names)} as the first word. Got: {name}.{hint}")
    strategy = STRATEGIES.get(name)
    # Wrong flags of the job are reported now, not after it has waited in the queue.
    kind = strategy.config if strategy else pkgutil.resolve_name(OTHERS[name])
    parser.add_options(kind, title="flags of the job")
    flags = parser.parse_args(argv)
    words = as_flags(from_values(kind, vars(flags)))
    resources = from_values(Resources, vars(flags))
    if strategy:
        job, words, ranks = strategy.job, [*strategy.flags, *words], strategy.unit == "rank"
    else:
        job, ranks = name, name == "plan"
    script = compose(job, resources, words, ranks=ranks)
    if flags.print:
        print(script, end="")
        return
    console = Console(highlight=False, markup=False, soft_wrap=True)
    job_id = queue.submit(script, resources.asked())
    console.print(f"job {job_id}: {name}")
    if flags.wait:
        queue.follow(job_id, console.print)
    else:
        console.print(f"squeue -j {job_id} shows its state, logs/ its log")
