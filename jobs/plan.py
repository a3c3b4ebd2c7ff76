"""Predict what a training would take on more nodes, from a short measurement on one or two nodes, and advise.

    mpiexec -n 2 python jobs/plan.py
    srun -N 2 -n 2 python jobs/plan.py --model resnet --batch-size 1024 --epochs 20
    python jobs/plan.py --calibration results/plan/calibration.json --gbit 100 --latency-us 2 --weak

Needs no data set. Writes calibration.json, from which it predicts again without MPI, plan.json, plan.md and
plan.png to --out.
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("plan")
