"""Makes a job script to measure and hands it to Slurm.

    python jobs/submit.py mpi --nodes 8 --time 00:30:00 --epochs 10
    python jobs/submit.py mpi --nodes 2 --ntasks-per-node 4 --print
    python jobs/submit.py bench --wait --repeats 3

The job's own flags go to the job; with a strategy's name --help lists them too. --print shows the script, and
needs no cluster; --wait follows the job to its end and exits with its code.
"""

import sys
from pathlib import Path

from rich.console import Console

from mpi_train.benchmarks.strategies.bench import BenchConfig
from mpi_train.cluster import queue
from mpi_train.cluster.script import TEMPLATES, Resources, compose, template
from mpi_train.runs.config import RanksConfig, TrainConfig
from mpi_train.runs.job import guarded
from mpi_train.runtime.flags import Parser, as_flags, from_values
from mpi_train.strategies.config import BaselineConfig, DevicesConfig
from mpi_train.strategies.federated.config import FederatedConfig
from mpi_train.strategies.mpi.config import MpiConfig
from mpi_train.strategies.pipeline.config import PipelineConfig

COUNTS = {
    "nodes": "nodes",
    "ntasks-per-node": "ranks a node",
    "cpus-per-task": "cores a rank",
    "gpus-per-node": "GPUs a node; one rank takes one",
}
WORDS = {
    "time": "limit, such as 00:30:00",
    "partition": "where to queue",
    "account": "who pays",
    "qos": "quality of service",
}
CONFIGS: dict[str, type[TrainConfig]] = {
    "baseline": BaselineConfig,
    "mpi": MpiConfig,
    "mirrored": DevicesConfig,
    "custom": DevicesConfig,
    "multiworker": RanksConfig,
    "pipeline": PipelineConfig,
    "federated": FederatedConfig,
    "bench": BenchConfig,
}


def main() -> None:
    parser = Parser(prog="python jobs/submit.py", description="Make a job script and submit it to Slurm.")
    parser.add_argument("strategy", help=", ".join(TEMPLATES))
    for name, text in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{text} (default: the template's)")
    for name, text in WORDS.items():
        parser.add_argument(f"--{name}", metavar="TEXT", help=f"{text} (default: the template's)")
    parser.add_argument("--print", action="store_true", help="show the script instead of submitting it")
    parser.add_argument("--wait", action="store_true", help="follow the job to its end")
    # The job's own flags are read here too, so that a slip is found before it has waited in the queue.
    kind = CONFIGS.get(next((word for word in sys.argv[1:] if word in TEMPLATES), ""))
    if kind is None:
        flags, job_flags = parser.parse_known_args()
    else:
        parser.add_options(kind, title="flags of the job")
        flags = parser.parse_args()
        job_flags = as_flags(from_values(kind, vars(flags)))
    resources = Resources(
        **{name.replace("-", "_"): getattr(flags, name.replace("-", "_")) for name in (*COUNTS, *WORDS)}
    )
    script = compose(flags.strategy, template(flags.strategy, Path("slurm")), resources, job_flags)
    if flags.print:
        print(script, end="")
        return
    console = Console(highlight=False, markup=False, soft_wrap=True)
    job_id = queue.submit(script, resources.lines())
    console.print(f"job {job_id}: {flags.strategy}")
    if flags.wait:
        queue.follow(job_id, console.print)
    else:
        console.print(f"squeue -j {job_id} shows its state, logs/ its log")


if __name__ == "__main__":
    guarded(main)
