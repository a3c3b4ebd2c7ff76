"""What this machine has for training, and the mend for what it lacks.

The checks run side by side, as those that start processes (``mpi_train.cluster.probes``) take seconds.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpi_train.cluster import probes
from mpi_train.runtime import devices, launch
from mpi_train.runtime.errors import JobError, PlatformError

Level = Literal["ok", "warning", "fail"]

ENOUGH_DISK_MIB = 1024
# What a plain srun must speak to the MPI library of a vendor, as Slurm names it.
_SLURM_MPI_TYPE = {"MPICH": "pmi2", "Intel MPI": "pmi2", "Open MPI": "pmix"}
_MEND_MPI = (
    "make setup MPI=wheel, for a library and an mpiexec that match; or with MPI=site: module load the "
    "cluster's MPI, whose library mpi4py finds on LD_LIBRARY_PATH or by MPI4PY_LIBMPI=libmpi.so.12 "
    "(MPICH, Intel) or libmpi.so.40 (Open MPI)"
)


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: What was looked at, in a word or two.
        level: ``ok``; ``warning``: training works, though not as it could; ``fail``: it does not.
        text: What was found.
        remedy: The command, or the one change, that mends it.
    """

    check: str
    level: Level
    text: str
    remedy: str | None = None


def examine() -> Iterator[Finding]:
    """Runs all checks at once, in the folder of the clone, and yields what they find in a fixed order."""
    checks: tuple[tuple[str, Callable[[], list[Finding]]], ...] = (
        ("Python", check_python),
        ("MPI library", check_mpi_library),
        ("mpiexec", check_mpiexec),
        ("TensorFlow", check_tensorflow),
        ("cores", check_cores),
        ("HDF5", check_hdf5),
        ("data", check_data),
        ("results", check_results),
        ("Slurm", check_slurm),
    )
    with ThreadPoolExecutor(len(checks)) as pool:
        running = [(name, pool.submit(check)) for name, check in checks]
        for name, check in running:
            try:
                yield from check.result()
            except JobError as error:
                yield Finding(name, "fail", error.message, error.remedy)


def check_python() -> list[Finding]:
    """The interpreter, and whether it is one that the pinned packages exist for."""
    text = f"{platform.python_version()}, {sys.executable}"
    if (3, 10) <= sys.version_info < (3, 14):
        return [Finding("Python", "ok", text)]
    return [Finding("Python", "fail", f"expected 3.10 to 3.13. Got: {text}", "make clean setup PYTHON=...")]


def check_mpi_library() -> list[Finding]:
    """Which MPI library mpi4py loads, and from where."""
    named = os.environ.get("MPI4PY_LIBMPI")
    try:
        found = probes.run("mpi_library")
    except PlatformError as error:
        raise PlatformError(
            f"{error.message}{f' (MPI4PY_LIBMPI={named})' if named else ''}", remedy=_MEND_MPI
        ) from error
    return [Finding("MPI library", "ok", f"{found['vendor']} {found['version']}, {found['library']}")]


def check_mpiexec() -> list[Finding]:
    """Whether the launcher and the library understand each other: a message around a ring of two ranks."""
    path = launch.find_mpiexec()
    try:
        found = probes.run("ring", launcher=launch.mpiexec(2, []))
    except PlatformError as error:
        raise PlatformError(f"{path}: {error.message}", remedy=_MEND_MPI) from error
    if found["size"] != 2:
        raise PlatformError(
            f"{path} started 2 processes, of which each sees an MPI world of {found['size']}",
            remedy=_MEND_MPI,
        )
    return [Finding("mpiexec", "ok", f"{path}, ring over 2 ranks in {found['lap_us']:.0f} us")]


def check_tensorflow() -> list[Finding]:
    """Versions, and the devices that TensorFlow sees."""
    found = probes.run("tensorflow")
    versions = f"TensorFlow {found['tensorflow']}, Keras {found['keras']}"
    if found["gpus"]:
        return [Finding("TensorFlow", "ok", f"{versions}, GPUs: {', '.join(found['gpus'])}")]
    if shutil.which("nvidia-smi") and _stdout(["nvidia-smi", "-L"]):
        return [
            Finding(
                "TensorFlow", "warning", f"{versions} sees no GPU, though nvidia-smi does", "make setup GPU=1"
            )
        ]
    return [Finding("TensorFlow", "ok", f"{versions}, no GPU: trains on the CPU")]


def check_cores() -> list[Finding]:
    """The cores this process may use, and the threads that ranks would get of them."""
    mask = frozenset(os.sched_getaffinity(0))
    threads = [
        f"{len(devices.share_of([mask] * ranks, 0))} on {ranks} ranks"
        for ranks in (2, 4)
        if ranks <= len(mask)
    ]
    text = f"{len(mask)} in the affinity mask; threads a rank: {', '.join(threads) or '1'}"
    quota = _cpu_quota()
    if quota is not None and quota < len(mask):
        return [
            Finding(
                "cores",
                "warning",
                f"{text}; but the container's quota is {quota:g} cores",
                f"taskset -c 0-{max(1, int(quota)) - 1} make ..., so that the mask says so too",
            )
        ]
    if len(mask) == 1:
        return [Finding("cores", "warning", f"{text}; ranks will take turns", "a machine with more cores")]
    return [Finding("cores", "ok", text)]


def check_hdf5() -> list[Finding]:
    """h5py, and the HDF5 library inside it."""
    try:
        import h5py
    except (ImportError, OSError) as error:
        raise PlatformError(f"h5py does not load: {error}", remedy="make clean setup") from error
    return [Finding("HDF5", "ok", f"h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}")]


def check_data() -> list[Finding]:
    """The shards below ``data/``: manifest, sizes and SHA-256 of each file."""
    from mpi_train.data.shards import ShardSet

    findings = []
    for directory in sorted(path.parent for path in Path("data").glob("*/manifest.json")):
        try:
            shards = ShardSet.open(directory, directory.name)
            shards.verify()
        except JobError as error:
            findings.append(Finding("data", "fail", error.message, error.remedy))
            continue
        counts = ", ".join(f"{shards.num_examples(split):,} {split}" for split in shards.manifest.splits)
        findings.append(Finding("data", "ok", f"{directory}: {counts} examples, checksums right"))
    return findings or [
        Finding("data", "warning", "no shards in data/", "make data (make bench does it too)")
    ]


def check_results() -> list[Finding]:
    """Whether results can be written, and the space for them and for the shards."""
    folder = Path("results") if Path("results").exists() else Path()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        raise PlatformError(
            f"{folder.resolve()} cannot be written: {error.strerror}", remedy="OUT=DIR with another folder"
        ) from error
    free_mib = shutil.disk_usage(folder).free >> 20
    text = f"{folder.resolve()} can be written, {free_mib:,} MiB free"
    if free_mib < ENOUGH_DISK_MIB:
        return [
            Finding("results", "warning", text, f"free {ENOUGH_DISK_MIB:,} MiB, or OUT=DIR on another disk")
        ]
    return [Finding("results", "ok", text)]


def check_slurm() -> list[Finding]:
    """The cluster, if this machine belongs to one, and whether its srun speaks to our MPI library."""
    if not shutil.which("sbatch"):
        return [Finding("Slurm", "ok", "none here, and nothing but sbatch slurm/*.sh needs it")]
    partitions = _stdout(["sinfo", "-h", "-o", "%P"]).split()
    if not partitions:
        return [
            Finding(
                "Slurm", "warning", "installed, but no controller answers", "scontrol ping (or make slurm-up)"
            )
        ]
    config = dict(
        line.replace(" ", "").split("=", 1)
        for line in _stdout(["scontrol", "show", "config"]).splitlines()
        if "=" in line
    )
    speaks = os.environ.get("SLURM_MPI_TYPE") or config.get("MpiDefault", "none")
    text = f"Slurm {config.get('SLURM_VERSION', '')}, partitions {' '.join(partitions)}, srun speaks {speaks}"
    try:
        vendor = probes.run("mpi_library")["vendor"]
    except PlatformError:
        vendor = ""  # said above, by its own check
    needed = _SLURM_MPI_TYPE.get(vendor)
    if needed is not None and speaks.startswith(("none", "pmi")) and not speaks.startswith(needed):
        return [Finding("Slurm", "warning", f"{text}, {vendor} {needed}", f"export SLURM_MPI_TYPE={needed}")]
    return [Finding("Slurm", "ok", text)]


def _cpu_quota() -> float | None:
    """Cores' worth of time that the control group grants, or None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _stdout(command: list[str]) -> str:
    """What a command prints; nothing when it fails or takes longer than 5 s."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
