"""Train in one process with Keras fit on all cores: the reference of every comparison.

    python jobs/baseline.py
    python jobs/baseline.py --model mlp --epochs 10
    python jobs/baseline.py --tuned
    sbatch slurm/baseline.sh

Writes run.json, events.jsonl and epochs.csv to --out (default: results/baseline, or results/tuned).
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("baseline")
