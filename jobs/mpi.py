"""Train over MPI: every rank on its shard, weights averaged with Allreduce after every step.

    mpiexec -n 4 python jobs/mpi.py --epochs 5
    mpiexec -n 4 python jobs/mpi.py --average gradients
    sbatch slurm/mpi_4nodes.sh --epochs 10

Writes run.json, events.jsonl, epochs.csv and checkpoints to --out (default: results/mpi). After an
interruption the same command resumes from the last checkpoint, on any number of ranks.
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("mpi")
