"""Shared parts of all tests: ranks that agree on each verdict, marks, trainings, a small data set.

Plain ``pytest`` is one process; ``mpiexec -n 2 pytest --with-mpi`` runs the tests that use ranks on each.
"""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpi_train.data.shards import ShardSet
from mpi_train.runtime import devices
from mpi_train.runtime import world as worlds
from mpi_train.runtime.world import World
from tests import programs as programs_module
from tests.in_process import TrainJob, split_devices
from tests.programs import Terminal, is_guarded

WORLD = pytest.StashKey[World]()


# ---- Ranks ----------------------------------------------------------------------------------------------


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    with_mpi = config.getoption("--with-mpi") or config.getoption("--only-mpi")
    world = worlds.join() if with_mpi else World()
    config.stash[WORLD] = world
    devices.claim_cores(world, None)
    if not world.is_root:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        reporter._tw._file = io.StringIO()
    sys.addaudithook(_refuse_programs)


def pytest_collection_finish(session: pytest.Session) -> None:
    if "tensorflow" in sys.modules:
        split_devices()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Let a test under MPI pass when it passes on every rank, and show on rank 0 why it did not."""
    report: pytest.TestReport = yield  # type: ignore[misc, assignment]
    world = item.config.stash[WORLD]
    # A rank that fails in the setup must take the others along, or they would wait for it in the call.
    if world.size > 1 and report.when in ("setup", "call"):
        texts = world.gather_all(report.longreprtext if report.failed else None)
        failed = [f"--- rank {rank} ---\n{text}" for rank, text in enumerate(texts) if text is not None]
        if failed:
            report.outcome = "failed"
            report.longrepr = "\n".join(failed)
    return report  # type: ignore[return-value]


# ---- Marks ----------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that start programs, which ranks must not do, and those that need more than 2 ranks.

    On several ranks only tests that use the ranks run: others would show on each what one process shows.
    """
    for item in items:
        if "programs" in getattr(item, "fixturenames", ()):
            item.add_marker("launches")
        if "train_job" in getattr(item, "fixturenames", ()):
            item.add_marker("trains")
        if item.get_closest_marker("launches"):
            item.add_marker("mpi_skip")
        if any(mark.kwargs.get("min_size", 0) > 2 for mark in item.iter_markers("mpi")):
            item.add_marker(pytest.mark.ranks(4))
    if config.stash[WORLD].size > 1:
        alone = {
            item
            for item in items
            if "world" not in getattr(item, "fixturenames", ()) and not item.get_closest_marker("mpi")
        }
        config.hook.pytest_deselected(items=list(alone))
        items[:] = [item for item in items if item not in alone]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("peers") and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed here; make test-peers makes an environment that has it")


_running: list[pytest.Item] = []
"""The test that runs, if any."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _running.append(item)
    try:
        return (yield)  # type: ignore[return-value]
    finally:
        _running.clear()


def _refuse_programs(event: str, arguments: tuple[Any, ...]) -> None:
    """Fail a test that starts a program without the mark ``launches``."""
    if event not in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec") or not _running:
        return
    program = os.fsdecode(arguments[0])
    if is_guarded(program) and not _running[0].get_closest_marker("launches"):
        pytest.fail(
            f"{_running[0].nodeid} starts {program}, and is not marked as a test that starts programs. "
            "Fix: start it through a fixture (launch, terminal), or add @pytest.mark.launches"
        )


@pytest.fixture(scope="session")
def programs() -> None:
    """Mark of the fixtures that start programs: a test that uses one of them gets the mark ``launches``."""


@pytest.fixture
def launch(programs: None) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Give the function that runs a job as a program: ``launch("mpi", "--epochs", "1", ranks=2)``."""
    return programs_module.start


@pytest.fixture
def terminal(programs: None) -> Iterator[type[Terminal]]:
    """Give the class that starts a program under a pseudo-terminal, and end these programs afterwards."""
    started: list[Terminal] = []

    class Started(Terminal):
        def __init__(self, words: list[str], columns: int) -> None:
            super().__init__(words, columns)
            started.append(self)

    yield Started
    for each in started:
        each.process.kill()
        each.process.wait()


@pytest.fixture
def pythonpath(tmp_path: Path) -> str:
    """Return a ``PYTHONPATH`` for programs that import modules from ``tmp_path``."""
    return os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])


# ---- Data and training ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def world(request: pytest.FixtureRequest) -> World:
    """Return the ranks that run the tests; one process without MPI under plain ``pytest``."""
    return request.config.stash[WORLD]


@pytest.fixture(scope="session")
def tiny_shards(world: World) -> Iterator[Path]:
    """Make a folder with 509 training and 131 test images of the stand-in, in 4 shards, seen by all ranks."""
    from mpi_train.data import synthetic
    from mpi_train.data.shards import write_shards

    folder = Path(tempfile.mkdtemp(prefix="mpi-train-")) if world.is_root else None
    folder = world.gather_all(folder)[0]
    assert folder is not None
    if world.is_root:
        write_shards(synthetic.draw(seed=1, num_train=509, num_test=131), folder, num_shards=4, seed=1)
    world.barrier()
    yield folder
    world.barrier()
    if world.is_root:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def tiny(tiny_shards: Path) -> ShardSet:
    return ShardSet.open(tiny_shards, "synthetic")


@pytest.fixture
def shared_path(world: World, tmp_path: Path) -> Path:
    """Return the root's ``tmp_path``, on all ranks."""
    return world.gather_all(tmp_path)[0]


@pytest.fixture
def train_job(world: World, tiny_shards: Path, shared_path: Path) -> TrainJob:
    """Give what trains in this process: ``train_job("mpi", "--epochs", "1", ranks=2)`` returns the record."""
    return TrainJob(world, tiny_shards, shared_path)
