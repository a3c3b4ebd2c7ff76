"""Measure training steps on 1, 2, 4, 8, ... ranks, and compare them with the prediction from two ranks.

    mpiexec -n 8 python jobs/scaling.py
    mpiexec -n 4 python jobs/scaling.py --model mlp --batch-size 256 --collectives plain,hierarchical
    srun -N 8 -n 8 python jobs/scaling.py

One launch measures all numbers of ranks up to its own; ranks that a measurement does not need sleep. Needs no
data set. Writes scaling.json, scaling.md and scaling.png to --out.
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("scaling")
