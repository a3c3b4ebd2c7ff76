"""The submit command: make a job script for a strategy, the bench or the plan, and submit it to Slurm."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Sequence

from rich.console import Console

from mpi_train.cluster import queue
from mpi_train.cluster.script import Resources, compose
from mpi_train.runtime import launch
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import Parser, as_flags, from_values
from mpi_train.strategies.registry import STRATEGIES

OTHERS = {
    "bench": "mpi_train.benchmarks.bench:BenchConfig",
    "plan": "mpi_train.benchmarks.scaling.config:PlanConfig",
}
"""Commands that are not strategies, and their config, which is imported if it is needed."""


def main(argv: Sequence[str]) -> None:
    """Submit what the flags ``argv`` ask for."""
    names = [*STRATEGIES, *OTHERS]
    parser = Parser(prog=launch.typed("submit"), description="Make a job script and submit it to Slurm.")
    parser.add_argument("strategy", help=", ".join(names))
    parser.add_options(Resources, title="resources")
    parser.add_argument("--print", action="store_true", help="print the script instead of submitting it")
    parser.add_argument("--wait", action="store_true", help="follow the job to its end")
    # Wrong flags of the job are reported now, not after it has waited in the queue.
    name = next((word for word in argv if word in names), "")
    strategy = STRATEGIES.get(name)
    if name:
        kind = strategy.config if strategy else pkgutil.resolve_name(OTHERS[name])
        parser.add_options(kind, title="flags of the job")
        flags = parser.parse_args(argv)
    else:
        flags, _ = parser.parse_known_args(argv)
        near = difflib.get_close_matches(flags.strategy, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"expected one of {', '.join(names)}. Got: {flags.strategy}.{hint}")
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
