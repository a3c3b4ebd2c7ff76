"""Description of the machine of a run: hosts, processor, libraries, commit, Slurm job."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mpi_train.runtime.world import World, mpi_library


def describe(world: World) -> dict[str, Any]:
    """Return the environment for ``run.json``. Collective, after TensorFlow was imported."""
    tensorflow = sys.modules["tensorflow"]
    gpus = tensorflow.config.list_physical_devices("GPU")
    details = [tensorflow.config.experimental.get_device_details(gpu) for gpu in gpus]
    return {
        "hosts": list(world.hosts),
        "cpu": cpu_model(),
        "cores": len(cores_of_node(world)),
        "gpus": [detail.get("device_name", "GPU") for detail in details],
        "mpi": mpi_library() if world.comm is not None else None,
        "python": platform.python_version(),
        "tensorflow": tensorflow.__version__,
        "keras": importlib.metadata.version("keras"),
        "pytorch": sys.modules["torch"].__version__ if "torch" in sys.modules else None,
        # Starts a process, which one rank need do, not a thousand.
        "git_commit": git_commit() if world.is_root else None,
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
    }


def cores_of_node(world: World) -> set[int]:
    """Return the cores that the ranks on this node may use; on all ranks together."""
    everyone = world.gather_all((world.hosts[world.rank], os.sched_getaffinity(0)))
    return set().union(*(cores for host, cores in everyone if host == world.hosts[world.rank]))


def command() -> str:
    """Return the command line of this process."""
    return " ".join([os.path.basename(sys.executable), *sys.argv])


def cpu_model() -> str:
    """Return the processor's name, as the kernel reports it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def num_gpus() -> int:
    """Count the NVIDIA GPUs of this machine that a process may use, without starting TensorFlow."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip()])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def git_commit() -> str | None:
    """Return the commit of this source tree, with ``-dirty`` if files differ; None outside a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def peak_rss_mib(world: World) -> float:
    """Return the largest resident memory that any rank ever had, in MiB. Collective."""
    return max(world.gather_all(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)) / 1024


def process_age_s() -> float:
    """Return the seconds since this process was started, its imports included."""
    start_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf("SC_CLK_TCK")
