"""Measures how training scales on 1, 2, 4, 8, … ranks, beside what the model of cost predicts from two.

    mpiexec -n 8 python jobs/scaling.py
    mpiexec -n 4 python jobs/scaling.py --model mlp --batch-size 256 --collectives plain,hierarchical
    srun -N 8 -n 8 python jobs/scaling.py

One launch measures all numbers of ranks up to its own: those that a measurement does not need sleep. It
needs no data set. Leaves scaling.json, scaling.md and scaling.png in --out.
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("scaling")
