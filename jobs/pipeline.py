"""Train a model in stages: each rank has one stage, and activations flow from rank to rank over MPI.

    mpiexec -n 2 python jobs/pipeline.py --epochs 5
    mpiexec -n 4 python jobs/pipeline.py --stages 2                  # two replicas of a pipeline of two
    mpiexec -n 2 python jobs/pipeline.py --micro-batches 8 --cut max_pooling2d
    sbatch slurm/ranks.sh pipeline

Writes run.json, events.jsonl, epochs.csv and checkpoints to --out (default: results/pipeline).
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("pipeline")
