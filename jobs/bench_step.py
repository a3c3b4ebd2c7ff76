"""Time one training step and its parts on this machine, and compare them with the limits of the machine.

    python jobs/bench_step.py --model cnn --batch-size 32
    mpiexec -n 2 python jobs/bench_step.py --model mlp --batch-size 64
    mpiexec -n 2 python jobs/bench_step.py --dtype bfloat16 --out results/step

Needs no data set: it trains on random images in memory. Writes bench_step.json to --out, if given.
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("bench_step")
