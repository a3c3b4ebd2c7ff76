"""Model parallelism over MPI: each rank has a stage of the model, and activations flow through them.

    mpiexec -n 2 python jobs/pipeline.py --epochs 5
    mpiexec -n 4 python jobs/pipeline.py --stages 2                  # two copies of a pipeline of two
    mpiexec -n 2 python jobs/pipeline.py --micro-batches 8 --cut max_pooling2d

Leaves in --out (default: results/pipeline) run.json, events.jsonl, epochs.csv and checkpoints.
"""

from mpi_train.cli import run_training
from mpi_train.runs.config import PipelineConfig

if __name__ == "__main__":
    run_training(
        "pipeline", PipelineConfig, description="Train the stages of a model on MPI ranks.", mpi=True
    )
