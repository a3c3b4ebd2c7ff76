"""Check what this machine has for training: one line for each check, with the fix for what it lacks.

    python jobs/doctor.py
    make doctor

Exit code 0 if training works on this machine, 4 if not.
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("doctor")
