"""Checkpoint files: complete or refused, whatever happens to them while or after they are written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

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
        "flags": np.array([[True], [False]]),
    }
    entries = [Entry.of(name, None, array) for name, array in arrays.items()]
    checkpoint_file.write(path, {"position": 1}, entries, arrays.values())
    return arrays


def position(epoch: int, step: int = 0) -> Position:
    return Position(epoch=epoch, segments=(Segment(1, step),) if step else (), epochs=())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    arrays = write(tmp_path / "a.safetensors")
    file = CheckpointFile(tmp_path / "a.safetensors")
    assert file.state == {"position": 1}
    for name, array in arrays.items():
        found = file.read(name)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert (found == array).all()
    with pytest.raises(DataError, match="no array other"):
        file.read("other")


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    arrays = write(tmp_path / "a.safetensors")
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded.pop("sha256").tobytes() == (tmp_path / "a.safetensors").read_bytes()[-32:]
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape)
        assert (loaded[name] == array).all()


def test_arrays_are_written_one_at_a_time(tmp_path: Path) -> None:
    made: list[weakref.ref[np.ndarray]] = []

    def ranks() -> Iterator[np.ndarray]:
        for rank in range(8):
            array = np.full(1000, rank, np.float32)
            made.append(weakref.ref(array))
            yield array
            del array
            assert sum(other() is not None for other in made) <= 1

    entries = [Entry("slot", rank, "<f4", (1000,)) for rank in range(8)]
    checkpoint_file.write(tmp_path / "a.safetensors", {}, entries, ranks())
    file = CheckpointFile(tmp_path / "a.safetensors")
    assert file.owners == {"slot": set(range(8))}
    assert all((file.read("slot", rank) == rank).all() for rank in range(8))
    with pytest.raises(DataError, match="no array slot of rank 8"):
        file.read("slot", 8)


def test_500_mutations_are_refused_or_read_as_they_were(tmp_path: Path) -> None:
    whole = tmp_path / "a.safetensors"
    arrays = write(whole)
    good = whole.read_bytes()
    rng = random.Random(1)
    path = tmp_path / "b.safetensors"
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
            data[0:8] = rng.randrange(2**64).to_bytes(8, "little")
        else:
            data += bytes(rng.randrange(256) for _ in range(rng.randrange(1, 100)))
        path.write_bytes(data)
        if bytes(data) == good:
            assert (CheckpointFile(path).read("weights") == arrays["weights"]).all()
            continue
        with pytest.raises(DataError, match="expected a whole checkpoint"):
            CheckpointFile(path)


@pytest.mark.parametrize(
    "header",
    [
        {"weights": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 32]}},
        {"weights": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"weights": {"dtype": "F32", "shape": [9], "data_offsets": [0, 32]}},
        {"weights": {"dtype": "O8", "shape": [4], "data_offsets": [0, 32]}},
        {"weights": {"dtype": "F32", "shape": [-8], "data_offsets": [0, 32]}},
        {"weights": {"dtype": "F32", "shape": [8.0], "data_offsets": [0, 32]}},
        {"weights": {"dtype": "F32", "shape": [8], "data_offsets": [-32, 0]}},
        {"weights": []},
        {"weights": 1},
        {"__metadata__": {"state": "[1]"}},
        {"__metadata__": {"state": "{"}},
        {"__metadata__": {"state": 10_000 * "["}},
        {"__metadata__": {"other": "{}"}},
        {"__metadata__": 1},
        [],
    ],
    ids=str,
)
def test_a_header_that_lies_is_refused_before_memory_is_taken(header: object, tmp_path: Path) -> None:
    num_bytes = 0
    if isinstance(header, dict):
        num_bytes = 32 if "weights" in header else 0
        header = {
            "__metadata__": {"state": "{}"},
            "sha256": {"dtype": "U8", "shape": [32], "data_offsets": [num_bytes, num_bytes + 32]},
            **header,
        }
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(num_bytes)
    path = tmp_path / "a.safetensors"
    path.write_bytes(data + hashlib.sha256(data).digest())
    with pytest.raises(DataError, match="expected a whole checkpoint"):
        CheckpointFile(path)


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"weights": np.zeros(100)}, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match="bytes that do not match their SHA-256"):
        CheckpointFile(tmp_path / "a.safetensors")


def test_the_newest_are_kept_and_a_damaged_one_is_skipped(tmp_path: Path) -> None:
    lines: list[str] = []
    checkpoints = Checkpoints(tmp_path, World(), WORK, lines.append)
    for step in range(1, 6):
        assert checkpoints.save(position(1, step), {"weights": np.full(10, step, np.float32)})
    names = sorted(path.name for path in checkpoints.folder.iterdir())
    assert names == [f"epoch-0001-step-000000{step}.safetensors" for step in (3, 4, 5)]
    assert len(names) == KEPT
    newest = checkpoints.folder / names[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    found = checkpoints.find("auto")
    assert found is not None
    assert found.position.step == 4
    assert (found.arrays["weights"] == 4).all()
    assert work_of(tmp_path, "auto") == work_of(tmp_path, str(found.path)) == WORK
    assert work_of(tmp_path, "never") == work_of(tmp_path / "elsewhere", "auto") == {}
    assert "skipped: " in lines[0]
    assert names[-1] in lines[0]
    for path in checkpoints.folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no checkpoint in .* is usable"):
        checkpoints.find("auto")
    assert checkpoints.find("never") is None
    assert not list(checkpoints.folder.iterdir())


def test_the_old_format_is_refused(tmp_path: Path) -> None:
    lines: list[str] = []
    checkpoints = Checkpoints(tmp_path, World(), WORK, lines.append)
    old = checkpoints.folder / "epoch-0001-step-0000002.ckpt"
    checkpoints.folder.mkdir()
    old.write_bytes(b"MPITRAIN" + bytes(100))
    for resume in ("auto", str(old)):
        with pytest.raises(DataError, match="expected a checkpoint in the safetensors format") as caught:
            checkpoints.find(resume)
        assert "Got: an older format" in str(caught.value)
        assert "Fix: --resume never, or resume with the version of mpi_train that wrote it" in str(
            caught.value
        )
    assert checkpoints.save(position(1, 1), {"weights": np.zeros(1)})
    found = checkpoints.find("auto")
    assert found is not None
    assert found.position.step == 1
    assert "skipped: " in lines[-1]
    assert checkpoints.find("never") is None
    assert not old.exists()


def test_an_empty_array_of_a_shape_that_cannot_be_is_refused(tmp_path: Path) -> None:
    entry = Entry("weights", None, "<f4", (0, 2**62))
    checkpoint_file.write(tmp_path / "a.safetensors", {}, [entry], [np.zeros(0, np.float32)])
    file = CheckpointFile(tmp_path / "a.safetensors")
    with pytest.raises(DataError, match="expected a whole checkpoint"):
        file.read("weights")


def test_checkpoints_later_than_the_one_resumed_from_are_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, World(), WORK)
    for step in (1, 2, 3):
        checkpoints.save(position(1, step), {"weights": np.full(10, step, np.float32)})
    first = checkpoints.folder / "epoch-0001-step-0000001.safetensors"
    found = checkpoints.find(str(first))
    assert found is not None
    checkpoints.forget_after(found.position)
    assert list(checkpoints.folder.iterdir()) == [first]
    (checkpoints.folder / ".epoch-0001-step-0000009.safetensors.7.tmp").write_bytes(
        b"left by a run that was killed"
    )
    assert checkpoints.save(position(1, 2), {"weights": np.full(10, 5, np.float32)})
    assert len(list(checkpoints.folder.iterdir())) == 2
    newest = checkpoints.find("auto")
    assert newest is not None
    assert (newest.arrays["weights"] == 5).all()


def test_an_impossible_position_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, World(), WORK)
    path = tmp_path / "a.safetensors"
    for bad in (
        {},
        {"position": 3, "work": WORK, "size": 1},
        {"position": dataclasses.asdict(position(2)), "work": WORK, "size": 1},
        {"position": dataclasses.asdict(position(1)), "work": WORK, "size": 0},
        {"position": dataclasses.asdict(position(1)), "work": WORK, "size": None},
        {"position": dataclasses.asdict(position(1)), "work": 1, "size": 1},
        {
            "position": {**dataclasses.asdict(position(1)), "segments": [{"size": 0, "num_steps": 1}]},
            "work": WORK,
            "size": 1,
        },
    ):
        checkpoint_file.write(path, bad, [], [])
        with pytest.raises(DataError, match="expected a run's checkpoint"):
            checkpoints.find(str(path))
    whole = {"position": dataclasses.asdict(position(1)), "work": {}, "size": 1}
    entries = [Entry("weights", rank, "<f4", ()) for rank in range(2)]
    checkpoint_file.write(path, whole, entries, 2 * [np.zeros((), np.float32)])
    with pytest.raises(DataError, match="weights of 2 ranks instead of 1"):
        checkpoints.find(str(path))
    checkpoint_file.write(path, whole, [], [])
    with pytest.raises(UsageError, match="other settings: model is None in the checkpoint, mlp in this run"):
        checkpoints.find(str(path))


@pytest.mark.ranks(4)
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
    # A checkpoint of another number of ranks.
    if world.is_root:
        (path,) = checkpoints.folder.glob("*.safetensors")
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


# Forks a child for each line of input. Each writes checkpoints, whose arrays hold their step, until killed.
WRITER = """
import os, sys, numpy as np
from pathlib import Path
from mpi_train.runs.checkpoints import Checkpoints, Position
from mpi_train.training.steps import Segment
from mpi_train.runtime.world import World
for _ in sys.stdin:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    checkpoints = Checkpoints(Path(sys.argv[1]), World(), {})
    found = checkpoints.find("auto")
    first = found.position.step + 1 if found else 1
    print(os.getpid(), first, flush=True)
    for step in range(first, 10**6):
        array = np.full(1_000_000, step, np.float32)
        checkpoints.save(Position(segments=(Segment(1, step),)), {"weights": array})
"""


@pytest.mark.launches
def test_a_run_killed_while_writing_resumes_from_a_complete_checkpoint(tmp_path: Path) -> None:
    rng = random.Random(1)
    last = 0
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    ) as parent:  # fmt: skip
        assert parent.stdin is not None
        assert parent.stdout is not None
        kills = 0
        while kills < 20 or last <= 20:  # on a busy machine some are killed before they have written any
            kills += 1
            print(file=parent.stdin, flush=True)
            child, first = map(int, parent.stdout.readline().split())
            assert first >= last
            time.sleep(rng.uniform(0.02, 0.3))
            os.kill(child, signal.SIGKILL)
            while Path(f"/proc/{child}").exists():
                time.sleep(0.001)
            found = Checkpoints(tmp_path, World(), {}).find("auto")
            assert found is not None or first == 1
            if found is not None:
                assert (found.arrays["weights"] == found.position.step).all()
                assert found.position.step >= first - 1
                last = found.position.step
        parent.stdin.close()


def mount(folder: Path, mib: int) -> None:
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("needs root, to mount a small file system")


@pytest.mark.launches
def test_a_disk_that_fills_up_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
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


@pytest.mark.slow
@pytest.mark.launches
def test_a_job_continues_on_a_disk_that_fills_up(tmp_path: Path, tiny_shards: Path) -> None:
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
        for path in (out / "checkpoints").glob("*.safetensors"):
            CheckpointFile(path)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
