"""Commands that start ranks on this machine, with the ``mpiexec`` that belongs to the MPI library in use."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mpi_train.runtime.errors import PlatformError

CLONE = Path(__file__).parents[2]
"""Folder with ``jobs/``, if the package is used from a clone."""


def command(name: str, python: str = sys.executable) -> list[str]:
    """Return the words that start the command ``name``: its script in a clone, else the package."""
    script = CLONE / "jobs" / f"{name}.py"
    return [python, os.path.relpath(script)] if script.is_file() else [python, "-m", "mpi_train", name]


def typed(name: str) -> str:
    """Return ``command`` as a user types it in an activated environment."""
    return " ".join(command(name, "python"))


def find_mpiexec() -> str:
    """Return the path of ``mpiexec``: the environment's own (from the wheel) before the site's.

    Raises:
        PlatformError: There is none.
    """
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("mpiexec")
    if found is None:
        raise PlatformError(
            "expected an mpiexec in the environment or on PATH. Got: none",
            remedy="make setup, or with the cluster's own MPI: module load it, then make setup MPI=site",
        )
    return found


def mpiexec(num_ranks: int, command: Sequence[str]) -> list[str]:
    """Return the words that run ``command`` as ``num_ranks`` ranks on this machine."""
    return [find_mpiexec(), "-n", str(num_ranks), *command]


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for a process that starts ranks of its own.

    The variables of a launcher that started *this* process are removed, as the new ranks would take them for
    theirs. Others are added that let Open MPI run as root in a container and share cores.
    """
    clean = {k: v for k, v in environ.items() if not k.startswith(("PMI_", "PMIX_", "OMPI_COMM_", "HYDI_"))}
    for key in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_mpi_yield_when_idle"):
        clean.setdefault(key, "1")
    clean.setdefault("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
    # Inside a Slurm job Hydra would start its ranks by srun, on as many cores as one task of the job has.
    clean.setdefault("HYDRA_LAUNCHER", "fork")
    return clean
