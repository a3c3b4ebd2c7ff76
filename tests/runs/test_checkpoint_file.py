"""Checkpoints on disk: whole or refused, whatever happens while they are written, or to them after."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mpi_train.runs import checkpoint_file
from mpi_train.runs.checkpoint_file import CheckpointFile, Entry
from mpi_train.runs.checkpoints import KEPT, Checkpoints, Position, work_of
from mpi_train.runtime.errors import DataError, UsageError
from mpi_train.runtime.world import World
from mpi_train.training.steps import Segment

pytestmark = [pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
WORK = {"model": "mlp", "seed": 1}


def write(path: Path, *, scale: float = 1.0) -> dict[str, np.ndarray]:
    arrays = {
        "weights": np.arange(1000, dtype=np.float32) * np.float32(scale),
        "optimizer/0": np.array(7, np.int64),
        "states/0": np.array([], np.uint8),
    }
    entries = [Entry.of(name, None, array) for name, array in arrays.items()]
    checkpoint_file.write(path, {"position": 1}, entries, arrays.values())
    assert path.stat().st_size == checkpoint_file.num_bytes({"position": 1}, entries)
    return arrays


def position(epoch: int, step: int = 0) -> Position:
    return Position(epoch=epoch, segments=(Segment(1, step),) if step else (), epochs=())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    arrays = write(tmp_path / "a.ckpt")
    file = CheckpointFile(tmp_path / "a.ckpt")
    assert file.state == {"position": 1}
    for name, array in arrays.items():
        found = file.read(name)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert (found == array).all()
    with pytest.raises(DataError, match="no array other"):
        file.read("other")


def test_500_mutations_are_refused_or_read_as_they_were(tmp_path: Path) -> None:
    whole = tmp_path / "a.ckpt"
    arrays = write(whole)
    good = whole.read_bytes()
    rng = random.Random(1)
    path = tmp_path / "b.ckpt"
    for number in range(500):
        data = bytearray(good)
        kind = number % 5
        if kind == 0:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[rng.randrange(len(data)) :]
        elif kind == 2:
            a, b = sorted(rng.sample(range(len(data)), 2))
            data[a], data[b] = data[b], data[a]
        elif kind == 3:
            data[8:16] = rng.randrange(2**64).to_bytes(8, "little")
        else:
            data += bytes(rng.randrange(256) for _ in range(rng.randrange(1, 100)))
        path.write_bytes(data)
        if bytes(data) == good:
            assert (CheckpointFile(path).read("weights") == arrays["weights"]).all()
            continue
        with pytest.raises(DataError, match="expected a whole checkpoint"):
            CheckpointFile(path)


@pytest.mark.parametrize(
    "arrays",
    [
        [["weights", None, "<f4", [2**62, 2**62]]],
        [["weights", None, "|O8", [1]]],
        [["weights", None, "<f4", [-1]]],
        [["weights", None, "<f4", [1.5]]],
        [["weights", -1, "<f4", [0]]],
        [[{}, None, "<f4", [0]]],
        {"weights": 1},
        [[]],
    ],
)
def test_a_header_that_lies_is_refused_before_memory_is_taken(arrays: object, tmp_path: Path) -> None:
    import hashlib
    import json

    header = json.dumps({"state": {}, "arrays": arrays}).encode()
    data = checkpoint_file.MAGIC + len(header).to_bytes(8, "little") + header + bytes(64)
    (tmp_path / "a.ckpt").write_bytes(data + hashlib.sha256(data).digest())
    with pytest.raises(DataError, match="expected a whole checkpoint"):
        CheckpointFile(tmp_path / "a.ckpt")


def test_the_newest_are_kept_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    lines: list[str] = []
    checkpoints = Checkpoints(tmp_path, World(), WORK, lines.append)
    for step in range(1, 6):
        assert checkpoints.save(position(1, step), {"weights": np.full(10, step, np.float32)})
    names = sorted(path.name for path in checkpoints.folder.iterdir())
    assert names == [f"epoch-0001-step-000000{step}.ckpt" for step in (3, 4, 5)]
    assert len(names) == KEPT
    newest = checkpoints.folder / names[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    found = checkpoints.find("auto")
    assert found is not None
    assert found.position.step == 4
    assert (found.arrays["weights"] == 4).all()
    assert work_of(tmp_path, "auto") == work_of(tmp_path, str(found.path)) == WORK
    assert work_of(tmp_path, "never") == work_of(tmp_path / "elsewhere", "auto") == {}
    assert "passed over" in lines[0]
    assert names[-1] in lines[0]
    for path in checkpoints.folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no checkpoint in .* is whole"):
        checkpoints.find("auto")
    assert checkpoints.find("never") is None
    assert not list(checkpoints.folder.iterdir())


def test_an_empty_array_of_a_shape_that_cannot_be_is_refused(tmp_path: Path) -> None:
    entry = Entry("weights", None, "<f4", (0, 2**62))
    checkpoint_file.write(tmp_path / "a.ckpt", {}, [entry], [np.zeros(0, np.float32)])
    file = CheckpointFile(tmp_path / "a.ckpt")
    with pytest.raises(DataError, match="expected a whole checkpoint"):
        file.read("weights")


def test_what_is_later_than_the_place_to_go_on_from_is_forgotten(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, World(), WORK)
    for step in (1, 2, 3):
        checkpoints.save(position(1, step), {"weights": np.full(10, step, np.float32)})
    first = checkpoints.folder / "epoch-0001-step-0000001.ckpt"
    found = checkpoints.find(str(first))
    assert found is not None
    checkpoints.forget_after(found.position)
    assert list(checkpoints.folder.iterdir()) == [first]
    (checkpoints.folder / ".epoch-0001-step-0000009.ckpt.tmp").write_bytes(b"of a run that was killed")
    assert checkpoints.save(position(1, 2), {"weights": np.full(10, 5, np.float32)})
    assert len(list(checkpoints.folder.iterdir())) == 2
    newest = checkpoints.find("auto")
    assert newest is not None
    assert (newest.arrays["weights"] == 5).all()


def test_a_position_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, World(), WORK)
    path = tmp_path / "a.ckpt"
    for bad in (
        {},
        {"position": 3, "work": WORK, "size": 1},
        {"position": position(2).as_json(), "work": WORK, "size": 1},
        {"position": position(1).as_json(), "work": WORK, "size": 0},
        {
            "position": {**position(1).as_json(), "segments": [{"size": 0, "num_steps": 1}]},
            "work": WORK,
            "size": 1,
        },
    ):
        checkpoint_file.write(path, bad, [], [])
        with pytest.raises(DataError, match="expected a run's checkpoint"):
            checkpoints.find(str(path))
    checkpoint_file.write(path, {"position": position(1).as_json(), "work": {}, "size": 1}, [], [])
    with pytest.raises(UsageError, match="is of another run: model is None there, and mlp here"):
        checkpoints.find(str(path))


@pytest.mark.mpi
def test_each_rank_gets_its_own_arrays_and_on_another_size_their_mean(world: World, tmp_path: Path) -> None:
    folder = Path(world.gather_all(str(tmp_path))[0])
    checkpoints = Checkpoints(folder, world, WORK)
    own = np.full(5, world.rank, np.float32)
    stage = np.full((world.rank + 1, 2), 7.0)  # of another length on each rank, as a pipeline's
    arrays = {"common": np.arange(3.0), "own": own, "count": np.array(3, np.int64), "stage": stage}
    assert checkpoints.save(position(1, 1), arrays)
    found = checkpoints.find("auto")
    assert found is not None
    assert found.size == world.size
    for name, array in arrays.items():
        assert found.arrays[name].shape == array.shape
        assert (found.arrays[name] == array).all()
    # What a job of another size makes of it.
    if world.is_root:
        (path,) = checkpoints.folder.glob("*.ckpt")
        file = CheckpointFile(path)
        file.state["size"] = 3
        entries = [Entry.of("own", rank, own) for rank in range(3)]
        values = [np.full(5, 3 * rank, np.float32) for rank in range(3)]
        checkpoint_file.write(path, file.state, entries, values)
    world.barrier()
    found = checkpoints.find("auto")
    assert found is not None
    expected = 3 * world.rank if world.size == 3 else 3
    assert (found.arrays["own"] == expected).all()
    world.barrier()


# Writes checkpoints one after another; each says of itself which it is.
WRITER = """
import sys, numpy as np
from pathlib import Path
from mpi_train.runs.checkpoints import Checkpoints, Position
from mpi_train.training.steps import Segment
from mpi_train.runtime.world import World
checkpoints = Checkpoints(Path(sys.argv[1]), World(), {})
found = checkpoints.find("auto")
first = found.position.step + 1 if found else 1
print(first, flush=True)
for step in range(first, 10**6):
    array = np.full(1_000_000, step, np.float32)
    checkpoints.save(Position(segments=(Segment(1, step),)), {"weights": array})
"""


@pytest.mark.mpi_skip
def test_killed_while_writing_it_always_goes_on_from_a_whole_one(tmp_path: Path) -> None:
    rng = random.Random(1)
    last = 0
    for _ in range(20):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        first = int(child.stdout.readline())
        assert first >= last
        time.sleep(rng.uniform(0.02, 0.3))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        found = Checkpoints(tmp_path, World(), {}).find("auto")
        assert found is not None or first == 1
        if found is not None:
            assert (found.arrays["weights"] == found.position.step).all()
            assert found.position.step >= first - 1
            last = found.position.step
    assert last > 20


def mount(folder: Path, mib: int) -> None:
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("needs root, to mount a small file system")


@pytest.mark.mpi_skip
def test_a_disk_that_fills_up_leaves_the_last_good_one(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    mount(disk, 4)
    try:
        lines: list[str] = []
        checkpoints = Checkpoints(disk, World(), WORK, lines.append)
        assert checkpoints.save(position(1, 1), {"weights": np.full(250_000, 1, np.float32)})
        (disk / "of somebody else").write_bytes(bytes(2_500_000))
        assert not checkpoints.save(position(1, 2), {"weights": np.full(250_000, 2, np.float32)})
        assert len(lines) == 1
        assert f"no checkpoint of epoch 1, step 2: {checkpoints.folder}: No space left" in lines[0]
        assert "1.0 MiB needed, 0." in lines[0]
        assert len(list(checkpoints.folder.iterdir())) == 1  # nothing half-written stays
        found = checkpoints.find("auto")
        assert found is not None
        assert (found.arrays["weights"] == 1).all()
        (disk / "of somebody else").unlink()
        assert checkpoints.save(position(1, 3), {"weights": np.full(250_000, 3, np.float32)})
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert not checkpoints.save(position(1, 4), {"weights": np.full(250_000, 4, np.float32)})
        assert "Read-only file system" in lines[1]
        found = checkpoints.find("auto")
        assert found is not None
        assert (found.arrays["weights"] == 3).all()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.mpi_skip
def test_a_job_on_a_disk_that_fills_up_trains_on(tmp_path: Path, tiny_shards: Path) -> None:
    from mpi_train.runs.record import read_run
    from mpi_train.runtime import launch

    disk = tmp_path / "disk"
    mount(disk, 3)
    try:
        out = disk / "out"
        words = [
            sys.executable, "jobs/mpi.py", "--dataset", "synthetic", "--data", str(tiny_shards), "--model",
            "mlp", "--epochs", "4", "--out", str(out),
        ]  # fmt: skip
        (disk / "of somebody else").write_bytes(bytes(1_000_000))
        result = subprocess.run(
            launch.mpiexec(2, words), cwd=ROOT, env=launch.environment(), capture_output=True, text=True,
            timeout=100, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        assert "No space left on device" in result.stdout
        assert "MiB needed" in result.stdout
        assert len(read_run(out / "run.json").epochs) == 4
        for path in (out / "checkpoints").glob("*.ckpt"):
            CheckpointFile(path)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
