"""Train on a TPU, or on the best device of this machine.

    python jobs/tpu.py
    sbatch slurm/process.sh tpu

Writes run.json, events.jsonl, epochs.csv and checkpoints to --out (default: results/tpu).
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("tpu")
