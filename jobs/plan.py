"""Predicts what a training would take on more nodes, from a short measurement on one or two, and advises.

    mpiexec -n 2 python jobs/plan.py
    srun -N 2 -n 2 python jobs/plan.py --model resnet --batch-size 1024 --epochs 20
    python jobs/plan.py --calibration results/plan/calibration.json --gbit 100 --latency-us 2 --weak
    python jobs/plan.py --calibration results/plan/calibration.json --simulate

It needs no data set. Leaves calibration.json, from which it predicts again without MPI, and plan.json,
plan.md and plan.png in --out.
"""

import io
from contextlib import nullcontext, redirect_stdout

from mpi_train.benchmarks.scaling import plan
from mpi_train.benchmarks.scaling.config import PlanConfig
from mpi_train.runs.job import guarded, run_job
from mpi_train.runtime import world as worlds
from mpi_train.runtime.flags import parse

DESCRIPTION = "Predict what a training would take on more nodes."


def work() -> None:
    """Predicts from a file, if one was named; else returns."""
    with nullcontext() if worlds.speaks() else redirect_stdout(io.StringIO()):
        config = parse(PlanConfig, description=DESCRIPTION, prog="python jobs/plan.py")
    if config.calibration is None:
        run_job(
            "plan",
            PlanConfig,
            "mpi_train.benchmarks.scaling.measure_plan:plan",
            text=DESCRIPTION,
            mpi=True,
        )
    worlds.alone(job="plan --calibration")
    plan.from_file(config)


if __name__ == "__main__":
    guarded(work)
