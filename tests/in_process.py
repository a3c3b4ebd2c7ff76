"""Training jobs inside the test process: what a job does after its flags are read."""

from __future__ import annotations

import pkgutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mpi_train.runs.config import TrainConfig
from mpi_train.runs.record import RunRecord
from mpi_train.runtime import machine
from mpi_train.runtime.errors import JobError
from mpi_train.runtime.flags import parse
from mpi_train.runtime.world import World
from mpi_train.strategies.registry import STRATEGIES

NUM_DEVICES = 3
"""Logical CPU devices of a test process, for the strategies that train over several."""


def config_of(strategy: str, *flags: str | Path) -> TrainConfig:
    """Read the configuration of a strategy from the flags of its job.

    Raises:
        UsageError: An unknown flag or a value outside its range.
    """
    return parse(STRATEGIES[strategy].config, [str(flag) for flag in flags], description="", prog=strategy)


def split_devices() -> None:
    """Give TensorFlow several logical CPU devices, before it places anything on the first."""
    import tensorflow as tf

    one = tf.config.LogicalDeviceConfiguration()
    cpu = tf.config.list_physical_devices("CPU")[0]
    if tf.config.get_logical_device_configuration(cpu) is None:
        tf.config.set_logical_device_configuration(cpu, [one] * NUM_DEVICES)


class TrainJob:
    """Trainings in this process, on tiny data; tests get it from the fixture ``train_job``.

    Args:
        world: Ranks that run the test.
        data: Folder of the shards.
        folder: Folder of the results, the same on all ranks.
    """

    def __init__(self, world: World, data: Path, folder: Path) -> None:
        self._world, self._data, self.folder = world, data, folder

    def __call__(
        self, strategy: str, *flags: str | Path, ranks: int | None = None, out: str = "out"
    ) -> RunRecord:
        """Train on the first ``ranks`` ranks (default: all) and return the record, on all ranks together.

        Args:
            strategy: Name of the strategy.
            flags: Flags of its job; a later flag replaces an earlier one and the defaults of this class.
            ranks: Number of ranks that train; 1 trains without MPI, on the root.
            out: Folder of the record, below ``folder``.

        Raises:
            JobError: The error of the job, on all ranks.
        """
        split_devices()
        import keras
        import tensorflow as tf

        config = config_of(
            strategy, "--dataset", "synthetic", "--data", self._data, "--model", "mlp",
            "--out", self.folder / out, *flags,
        )  # fmt: skip
        train = pkgutil.resolve_name(STRATEGIES[strategy].train)
        ranks = self._world.size if ranks is None else ranks
        taking_part = self._world.rank < ranks
        world = World() if ranks == 1 else self._world.split(int(taking_part))
        record: RunRecord | None = None
        with self._world.together():
            if taking_part:
                assert world.size == ranks, f"the test needs {ranks} ranks"
                # As in a process of its own: layers are numbered from 1, the run begins now.
                keras.utils.clear_session()
                # TensorFlow takes the exchanges of two strategies for the same; its own tests do this too.
                tf.distribute.MirroredStrategy._collective_key_base += 1000
                begin = time.monotonic()
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(machine, "process_age_s", lambda: time.monotonic() - begin)
                    record = train(config, world, 1)
                keras.config.set_dtype_policy("float32")
        record = self._world.gather_all(record)[0]
        assert record is not None
        return record

    def path(self, name: str, out: str = "out") -> Path:
        """The path of a file that a training left in its folder."""
        return self.folder / out / name


@contextmanager
def refused(code: int, *texts: str) -> Iterator[None]:
    """Check that a block raises a ``JobError`` with this exit code, whose message contains ``texts``."""
    with pytest.raises(JobError) as caught:
        yield
    assert caught.value.exit_code == code
    for text in texts:
        assert text in str(caught.value)
