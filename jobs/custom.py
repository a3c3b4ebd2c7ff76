"""Train in one process, with each batch split by hand over its GPUs or logical CPU devices.

    python jobs/custom.py
    python jobs/custom.py --devices 2
    sbatch slurm/process.sh custom --devices 2

Writes run.json, events.jsonl, epochs.csv and checkpoints to --out (default: results/custom).
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("custom")
