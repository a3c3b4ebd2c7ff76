"""Train in one process with Keras fit under MirroredStrategy, over GPUs or logical CPU devices.

    python jobs/mirrored.py
    python jobs/mirrored.py --devices 2
    sbatch slurm/mirrored.sh

Writes run.json, events.jsonl and epochs.csv to --out (default: results/mirrored).
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("mirrored")
