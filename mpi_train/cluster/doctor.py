"""Doctor command: checks of what this machine has for training, and the fix for what it lacks.

The checks run at the same time, as those that start processes (``mpi_train.cluster.probes``) take seconds.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from mpi_train.cluster import probes
from mpi_train.runtime import devices, launch
from mpi_train.runtime.errors import JobError, PlatformError
from mpi_train.runtime.flags import Parser

Level = Literal["ok", "warning", "fail"]

ENOUGH_DISK_MIB = 1024
# Protocol that srun must use with the MPI library of a vendor, under Slurm's name for it.
_SLURM_MPI_TYPE = {"MPICH": "pmi2", "Intel MPI": "pmi2", "Open MPI": "pmix"}
_FIX_MPI = (
    "make setup MPI=wheel, for a library and an mpiexec that match; or with MPI=site: module load the "
    "cluster's MPI, whose library mpi4py finds on LD_LIBRARY_PATH or by MPI4PY_LIBMPI=libmpi.so.12 "
    "(MPICH, Intel) or libmpi.so.40 (Open MPI)"
)
_COLOURS: dict[Level, str] = {"ok": "green", "warning": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Finding:
    """Outcome of one check; with a ``warning`` training works, but not as well as it could."""

    level: Level
    text: str
    remedy: str | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line for each finding, and its fix. Raises ``PlatformError`` if training does not work."""
    description = "Check what this machine has for training."
    Parser(prog="python jobs/doctor.py", description=description).parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    failed = []
    for name, finding in examine():
        level = (f"{finding.level:8}", _COLOURS[finding.level])
        console.print(Text.assemble(level, f"{name:12} {finding.text}"))
        if finding.remedy is not None:
            console.print(Text(f"{'':20} fix: {finding.remedy}", style="bold"))
        if finding.level == "fail":
            failed.append(name)
    if failed:
        problem = f"training will not work here: {', '.join(failed)}"
        raise PlatformError(problem, remedy="see above, then make doctor")


def examine() -> Iterator[tuple[str, Finding]]:
    """Run all checks at once, in the folder of the clone; yield their names and findings in a fixed order."""
    checks: dict[str, Callable[[], Finding | list[Finding]]] = {
        "Python": check_python,
        "MPI library": check_mpi_library,
        "mpiexec": check_mpiexec,
        "TensorFlow": check_tensorflow,
        "cores": check_cores,
        "HDF5": check_hdf5,
        "data": check_data,
        "results": check_results,
        "Slurm": check_slurm,
    }
    with ThreadPoolExecutor(len(checks)) as pool:
        running = {name: pool.submit(check) for name, check in checks.items()}
        for name, check in running.items():
            try:
                found = check.result()
            except JobError as error:
                found = Finding("fail", error.message, error.remedy)
            for finding in found if isinstance(found, list) else [found]:
                yield name, finding


def check_python() -> Finding:
    """Check that the pinned packages exist for the interpreter."""
    text = f"{platform.python_version()}, {sys.executable}"
    if (3, 10) <= sys.version_info < (3, 14):
        return Finding("ok", text)
    return Finding("fail", f"expected 3.10 to 3.13. Got: {text}", "make clean setup PYTHON=...")


def check_mpi_library() -> Finding:
    """Check which MPI library mpi4py loads, and from where."""
    try:
        found = probes.run("mpi_library")
    except PlatformError as error:
        named = os.environ.get("MPI4PY_LIBMPI")
        problem = f"{error.message}{f' (MPI4PY_LIBMPI={named})' if named else ''}"
        raise PlatformError(problem, remedy=_FIX_MPI) from error
    return Finding("ok", f"{found['vendor']} {found['version']}, {found['library']}")


def check_mpiexec() -> Finding:
    """Check that launcher and library use one protocol: two ranks exchange their numbers."""
    path = launch.find_mpiexec()
    try:
        found = probes.run("ring", launcher=launch.mpiexec(2, []))
    except PlatformError as error:
        raise PlatformError(f"{path}: {error.message}", remedy=_FIX_MPI) from error
    if found["size"] != 2:
        raise PlatformError(
            f"{path}: expected 2 ranks in one MPI world. Got: each rank in a world of {found['size']}",
            remedy=_FIX_MPI,
        )
    return Finding("ok", f"{path}, ring over 2 ranks in {found['lap_us']:.0f} us")


def check_tensorflow() -> Finding:
    """Check the versions, and the devices that TensorFlow finds."""
    found = probes.run("tensorflow")
    versions = f"TensorFlow {found['tensorflow']}, Keras {found['keras']}"
    if found["gpus"]:
        return Finding("ok", f"{versions}, GPUs: {', '.join(found['gpus'])}")
    if shutil.which("nvidia-smi") and _stdout("nvidia-smi", "-L"):
        return Finding("warning", f"{versions} finds no GPU, though nvidia-smi does", "make setup GPU=1")
    return Finding("ok", f"{versions}, no GPU: trains on the CPU")


def check_cores() -> Finding:
    """Check the cores this process may use, and the threads that each rank would get."""
    mask = frozenset(os.sched_getaffinity(0))
    counts = [ranks for ranks in (2, 4) if ranks <= len(mask)]
    threads = [f"{len(devices.share_of([mask] * ranks, 0))} on {ranks} ranks" for ranks in counts]
    text = f"{len(mask)} in the affinity mask; threads a rank: {', '.join(threads) or '1'}"
    quota = _cpu_quota()
    if quota is not None and quota < len(mask):
        remedy = f"taskset -c 0-{max(1, int(quota)) - 1} make ..., so that the mask has no more cores either"
        return Finding("warning", f"{text}; but the container's quota is {quota:g} cores", remedy)
    if len(mask) == 1:
        return Finding("warning", f"{text}; ranks will take turns", "a machine with more cores")
    return Finding("ok", text)


def check_hdf5() -> Finding:
    """Check that h5py loads, with the HDF5 library inside it."""
    try:
        import h5py
    except (ImportError, OSError) as error:
        return Finding("fail", f"h5py does not load: {error}", "make clean setup")
    return Finding("ok", f"h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}")


def check_data() -> list[Finding]:
    """Check the shards below ``data/``: manifest, sizes, and SHA-256 of each file."""
    from mpi_train.data.shards import ShardSet

    findings = []
    for directory in sorted(path.parent for path in Path("data").glob("*/manifest.json")):
        try:
            shards = ShardSet.open(directory, directory.name)
            shards.verify()
        except JobError as error:
            findings.append(Finding("fail", error.message, error.remedy))
            continue
        counts = ", ".join(f"{shards.num_examples(split):,} {split}" for split in shards.manifest.splits)
        findings.append(Finding("ok", f"{directory}: {counts} examples, checksums match"))
    return findings or [Finding("warning", "no shards in data/", "make data (make bench does it too)")]


def check_results() -> Finding:
    """Check that results can be written, and that there is space for results and shards."""
    folder = Path("results") if Path("results").exists() else Path()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        problem = f"{folder.resolve()} cannot be written: {error.strerror}"
        raise PlatformError(problem, remedy="OUT=DIR with another folder") from error
    free_mib = shutil.disk_usage(folder).free >> 20
    text = f"{folder.resolve()} can be written, {free_mib:,} MiB free"
    if free_mib < ENOUGH_DISK_MIB:
        return Finding("warning", text, f"free {ENOUGH_DISK_MIB:,} MiB, or OUT=DIR on another disk")
    return Finding("ok", text)


def check_slurm() -> Finding:
    """Check the cluster, if there is one, and that srun and the MPI library use one protocol."""
    if not shutil.which("sbatch"):
        return Finding("ok", "not installed; only sbatch slurm/*.sh and make submit need it")
    partitions = _stdout("sinfo", "-h", "-o", "%P").split()
    if not partitions:
        return Finding("warning", "installed, but no controller answers", "scontrol ping (or make slurm-up)")
    lines = _stdout("scontrol", "show", "config").replace(" ", "").splitlines()
    config = dict(line.split("=", 1) for line in lines if "=" in line)
    protocol = os.environ.get("SLURM_MPI_TYPE") or config.get("MpiDefault", "none")
    version = config.get("SLURM_VERSION", "")
    text = f"Slurm {version}, partitions {' '.join(partitions)}, srun uses {protocol}"
    try:
        vendor = probes.run("mpi_library")["vendor"]
    except PlatformError:
        vendor = ""  # reported by the check of the library
    needed = _SLURM_MPI_TYPE.get(vendor)
    if needed is not None and protocol.startswith(("none", "pmi")) and not protocol.startswith(needed):
        return Finding("warning", f"{text}, {vendor} {needed}", f"export SLURM_MPI_TYPE={needed}")
    return Finding("ok", text)


def _cpu_quota() -> float | None:
    """Return the CPU time that the control group grants, in cores; None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _stdout(*command: str) -> str:
    """Return the output of a command; an empty string if it fails or takes longer than 5 s."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
