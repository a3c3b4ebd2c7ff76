"""Make a job script and submit it to Slurm.

    python jobs/submit.py mpi --nodes 8 --time 00:30:00 --epochs 10
    python jobs/submit.py mpi --nodes 2 --ntasks-per-node 4 --print
    python jobs/submit.py bench --wait --repeats 3

The flags of the job are checked before it is submitted; with its name --help lists them too. --print prints
the script and needs no cluster. --wait follows the job to its end and exits with its code.
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("submit")
