"""Train over MPI ranks as the workers of MultiWorkerMirroredStrategy.

    mpiexec -n 2 python jobs/multiworker.py
    sbatch slurm/ranks.sh multiworker

Writes run.json, events.jsonl, epochs.csv and checkpoints to --out (default: results/multiworker).
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("multiworker")
