"""Evaluate a trained model, which a run has left as model.keras, on a data set in shards.

python jobs/evaluate.py --saved-model results/mpi/model.keras
mpiexec -n 4 python jobs/evaluate.py --saved-model results/mpi/model.keras --split train
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("evaluate")
