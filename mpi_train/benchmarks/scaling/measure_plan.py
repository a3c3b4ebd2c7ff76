"""``jobs/plan.py`` where it measures first: on one or two ranks, with TensorFlow."""

from __future__ import annotations

from rich.console import Console

from mpi_train.benchmarks.scaling import calibration as calibrations
from mpi_train.benchmarks.scaling import plan as planner
from mpi_train.benchmarks.scaling.calibrate import calibrate
from mpi_train.benchmarks.scaling.config import PlanConfig, every_step
from mpi_train.benchmarks.scaling.output import make_folder
from mpi_train.runtime import devices, machine
from mpi_train.runtime.errors import UsageError, unwritable
from mpi_train.runtime.world import World


def plan(config: PlanConfig, world: World, threads: int) -> None:
    """Calibrates on all ranks of ``world``; rank 0 keeps the calibration, prints and writes the plan.

    Raises:
        UsageError: too few ranks, or a step or folder that cannot be used; on all ranks.
        PlatformError: no SimGrid where it was asked for; on all ranks.
    """
    planner.check(config, world.size)
    if config.batch_size < 2:
        raise UsageError(
            f"--batch-size: expected at least 2, one example for each of two ranks. Got: {config.batch_size}"
        )
    with world.together():
        if world.is_root:
            planner.check_simulator(config)
            make_folder(config.out, (calibrations.FILE, *planner.FILES))
    with world.together():
        device = devices.own_device(world)
    console = Console(quiet=not world.is_root, highlight=False, markup=False)
    console.print(
        f"plan: {config.model}, batch {config.batch_size}, on {', '.join(world.hosts)}, {threads} threads "
        f"a rank, {machine.cpu_model()}",
        soft_wrap=True,
    )
    calibration = calibrate(
        config, world, device, threads, every_step(), lambda text: console.print("measuring", text)
    )
    with world.together():
        if world.is_root:
            try:
                calibration.write(config.out)
            except OSError as error:
                raise unwritable(config.out, error) from error
            planner.write(config, calibration, console)
