from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpi_train.data.examples import Examples, RawData
from mpi_train.data.partition import Partition
from mpi_train.data.shards import ShardSet, balanced_range, write_shards
from mpi_train.runtime.errors import DataError, UsageError
from mpi_train.runtime.files import sha256_of

SKEWED = Partition("dirichlet", 0.5)


def rows(examples: Examples) -> list[bytes]:
    """Each example as bytes: its image and its label."""
    flat = np.hstack([examples.images.reshape(len(examples), -1), examples.labels[:, None]])
    return [row.tobytes() for row in flat]


@pytest.mark.parametrize(("n", "size"), [(10, 3), (3, 3), (509, 7), (60_000, 64), (1, 1)])
def test_balanced_ranges_are_contiguous_and_even(n: int, size: int) -> None:
    ranges = [balanced_range(n, size, rank) for rank in range(size)]
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == n
    sizes = [stop - start for start, stop in ranges]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("split", ["train", "test"])
def test_any_number_of_ranks_reads_the_whole_set_once(
    tiny_shards: Path, raw: RawData, split: str, size: int
) -> None:
    shards = ShardSet.open(tiny_shards, "synthetic")
    parts = [shards.read(split, rank, size) for rank in range(size)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sorted(row for part in parts for row in rows(part)) == sorted(rows(getattr(raw, split)))


def test_the_order_is_that_of_the_shards_laid_end_to_end(tiny_shards: Path, raw: RawData) -> None:
    shards = ShardSet.open(tiny_shards, "synthetic")
    whole = rows(shards.read("train"))
    assert [row for rank in range(5) for row in rows(shards.read("train", rank, 5))] == whole
    assert rows(shards.read("test")) == rows(raw.test), "the test split keeps its order"


def test_as_many_ranks_as_shards_open_one_file_each(tiny_shards: Path) -> None:
    shards = ShardSet.open(tiny_shards, "synthetic")
    for index in (0, 1, 3):
        (tiny_shards / f"train-{index:05d}-of-00004.h5").unlink()
    assert len(shards.read("train", 2, 4)) == 127


def test_arrays_can_be_aliased_by_tensorflow(tiny_shards: Path) -> None:
    own = ShardSet.open(tiny_shards, "synthetic").read("train", 1, 3)
    for array in (own.images, own.labels):
        assert array.flags.c_contiguous
        assert array.ctypes.data % 64 == 0
        assert array.dtype == np.uint8


def test_files_and_manifest_say_what_they_are(tiny_shards: Path, raw: RawData) -> None:
    manifest = json.loads((tiny_shards / "manifest.json").read_text())
    assert manifest["schema_version"] == 1
    assert manifest["dataset"] == "synthetic"
    assert manifest["raw_sha256"] == raw.sha256
    assert manifest["partition"] == {"kind": "iid", "alpha": None}
    assert (manifest["num_classes"], manifest["image_shape"], manifest["seed"]) == (10, [28, 28], 7)
    assert manifest["splits"]["train"]["num_examples"] == 509
    assert [f["num_examples"] for f in manifest["splits"]["train"]["files"]] == [128, 127, 127, 127]
    entry = manifest["splits"]["train"]["files"][1]
    path = tiny_shards / "train-00001-of-00004.h5"
    assert entry["name"] == path.name
    assert entry["bytes"] == path.stat().st_size
    assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    with h5py.File(path) as file:
        assert dict(file.attrs) == {
            "dataset": "synthetic",
            "split": "train",
            "shard": 1,
            "num_shards": 4,
            "seed": 7,
            "partition": "iid",
        }
        for name, shape in (("images", (127, 28, 28)), ("labels", (127,))):
            assert (file[name].shape, file[name].dtype) == (shape, np.uint8)
            assert file[name].fletcher32
            assert file[name].chunks


def test_equal_arguments_give_equal_bytes(tmp_path: Path, raw: RawData) -> None:
    first = write_shards(raw, tmp_path / "a", 3, seed=2, method=SKEWED)
    time.sleep(1.1)  # HDF5 keeps times in seconds, were it to keep any
    assert write_shards(raw, tmp_path / "b", 3, seed=2, method=SKEWED) == first
    assert ShardSet.open(tmp_path / "b", "synthetic").manifest == first


def test_shards_with_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    splits = [
        Examples(rng.integers(0, 256, (n, 8, 6, 3), np.uint8), rng.integers(0, 4, n, np.uint8))
        for n in (50, 9)
    ]
    write_shards(RawData("colour", splits[0], splits[1], tuple("abcd")), tmp_path, num_shards=3)
    shards = ShardSet.open(tmp_path, "colour")
    assert shards.manifest.image_shape == (8, 6, 3)
    parts = [shards.read("train", rank, 4) for rank in range(4)]
    assert sorted(row for part in parts for row in rows(part)) == sorted(rows(splits[0]))


def test_a_second_write_replaces_the_first(tiny_shards: Path, raw: RawData) -> None:
    (tiny_shards / "notes.txt").write_text("mine")
    write_shards(raw, tiny_shards, num_shards=2, seed=7)
    assert sorted(path.name for path in tiny_shards.iterdir()) == [
        "manifest.json",
        "notes.txt",
        "test-00000-of-00001.h5",
        "train-00000-of-00002.h5",
        "train-00001-of-00002.h5",
    ]
    assert len(ShardSet.open(tiny_shards, "synthetic").read("train")) == 509


def test_a_write_that_fails_leaves_no_manifest_behind(
    tiny_shards: Path, raw: RawData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mpi_train.data.hdf5.write", full_disk)
    with pytest.raises(UsageError, match="No space left"):
        write_shards(raw, tiny_shards, num_shards=2)
    with pytest.raises(DataError, match="without manifest"):
        ShardSet.open(tiny_shards, "synthetic")


def test_writing_refuses_labels_out_of_range(tmp_path: Path, raw: RawData) -> None:
    few = RawData("synthetic", raw.train, raw.test, raw.class_names[:9])
    with pytest.raises(DataError, match=r"expected train labels below 9. Got: 9"):
        write_shards(few, tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path, raw: RawData) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--data: expected a folder that can be written"):
        write_shards(raw, tmp_path / "file")


# Faults of shards: each is refused, and the message ends in the command that fixes it.


def refused(directory: Path, *, split: str = "train", rank: int = 0, size: int = 1) -> str:
    with pytest.raises(DataError) as caught:
        ShardSet.open(directory, "synthetic").read(split, rank, size)
    assert caught.value.remedy is not None
    assert caught.value.remedy.startswith("python jobs/prepare_data.py --dataset synthetic --data ")
    return caught.value.message


def test_a_missing_shard(tiny_shards: Path) -> None:
    (tiny_shards / "train-00002-of-00004.h5").unlink()
    assert "train-00002-of-00004.h5: expected a file of" in refused(tiny_shards)
    assert len(ShardSet.open(tiny_shards, "synthetic").read("train", 0, 4)) == 128


@pytest.mark.parametrize("change", [-1, -50_000, 1])
def test_a_shard_of_another_size(tiny_shards: Path, change: int) -> None:
    path = tiny_shards / "test-00000-of-00001.h5"
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"\0")
    message = refused(tiny_shards, split="test")
    assert f"expected {len(content)} bytes. Got: {len(content) + change}" in message


def test_one_byte_flipped_anywhere_is_refused(tiny_shards: Path) -> None:
    path = tiny_shards / "train-00001-of-00004.h5"
    good = path.read_bytes()
    shards = ShardSet.open(tiny_shards, "synthetic")
    expected = {rank: rows(shards.read("train", rank, 3)) for rank in range(3)}
    rng = np.random.default_rng(0)
    # The first 64 bytes are HDF5's own header; then metadata; most of the rest is images.
    places = [
        *range(0, 64, 4),
        *rng.integers(64, 4096, 60),
        *rng.integers(4096, len(good), 60),
        len(good) - 1,
    ]
    for place in map(int, places):
        damaged = bytearray(good)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"train-00001-of-00004.h5: expected SHA-256"):
            shards.read("train")
        refusals = 0
        for rank in range(3):
            try:
                assert rows(shards.read("train", rank, 3)) == expected[rank], f"byte {place} read unnoticed"
            except DataError:
                refusals += 1
        assert refusals, f"byte {place}: no rank of three refused"


def test_readers_without_the_digest_see_damage_in_their_own_part(tiny_shards: Path, raw: RawData) -> None:
    # Rank 1 of 3 reads the end of shard 1, of which rank 0 computes the digest.
    path = tiny_shards / "train-00001-of-00004.h5"
    image = ShardSet.open(tiny_shards, "synthetic").read("train").images[250].tobytes()
    content = path.read_bytes()
    path.write_bytes(content.replace(image, image[:400] + bytes([image[400] ^ 1]) + image[401:]))
    assert "expected a sound HDF5 file" in refused(tiny_shards, rank=1, size=3)
    assert "SHA-256" in refused(tiny_shards, rank=0, size=3)


def forge(directory: Path, change: str) -> None:
    """Writes another shard 0 and enters its size and digest into the manifest, as a forger would."""
    path = directory / "train-00000-of-00004.h5"
    with h5py.File(path, "r+", libver="v110") as file:
        images, labels = file["images"][:], file["labels"][:]
        if change == "label":
            file["labels"][17] = 10
        elif change == "seed":
            file.attrs["seed"] = 8
        elif change == "split":
            file.attrs["split"] = "test"
        elif change == "attribute":
            del file.attrs["partition"]
        else:
            del file["images"]
            if change == "dtype":
                file.create_dataset("images", data=images.astype("u2"), chunks=(64, 28, 28), fletcher32=True)
            elif change == "shape":
                file.create_dataset("images", data=images[:-1], chunks=(64, 28, 28), fletcher32=True)
            elif change == "compressed":
                file.create_dataset(
                    "images", data=images, chunks=(64, 28, 28), fletcher32=True, compression="gzip"
                )
            elif change == "unguarded":
                file.create_dataset("images", data=images)
            elif change == "group":
                file.create_group("images")
            elif change == "elsewhere":
                file["images"] = h5py.ExternalLink("train-00001-of-00004.h5", "images")
                assert len(labels) == 128
    with path.open("ab") as padded:
        padded.truncate(max(path.stat().st_size, 128 * 785))
    manifest = json.loads((directory / "manifest.json").read_text())
    entry = manifest["splits"]["train"]["files"][0]
    entry["bytes"], entry["sha256"] = path.stat().st_size, sha256_of(path)
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("label", "expected labels below 10. Got: label 10"),
        ("seed", "expected attribute seed: 7. Got: 8"),
        ("split", "expected attribute split: train. Got: test"),
        ("attribute", "expected attribute partition: iid. Got: None"),
        ("dtype", "expected images: uint8 (128, 28, 28). Got: uint16"),
        ("shape", "expected images: uint8 (128, 28, 28). Got: uint8 (127, 28, 28)"),
        ("compressed", "not compressed. Got: another layout"),
        ("unguarded", "in chunks with Fletcher32"),
        ("group", "expected an array images. Got: none"),
        ("gone", "expected an array images. Got: none"),
        ("elsewhere", "expected images: uint8 (128, 28, 28). Got: uint8 (127, 28, 28)"),
    ],
)
def test_a_forged_shard(tiny_shards: Path, change: str, message: str) -> None:
    forge(tiny_shards, change)
    assert message in refused(tiny_shards)


def test_more_ranks_than_examples(tiny_shards: Path) -> None:
    shards = ShardSet.open(tiny_shards, "synthetic")
    with pytest.raises(UsageError, match=r"as many ranks as test examples, 128. Got: 129 ranks"):
        shards.read("test", 0, 129)
    assert len(shards.read("test", 127, 128)) == 1


LOAD = """
import sys
from pathlib import Path
from mpi_train.data.partition import Partition
from mpi_train.data.shards import ShardSet

def status_mib(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) / 1024

shards = ShardSet.open(Path(sys.argv[1]), "zeros")
before = status_mib("VmRSS")
examples = shards.read("train", int(sys.argv[2]), int(sys.argv[3]))
print(status_mib("VmHWM") - before, (examples.images.nbytes + examples.labels.nbytes) / 2**20)
"""


@pytest.mark.launches
@pytest.mark.parametrize(("rank", "size"), [(0, 1), (1, 4), (1, 3)])
def test_loading_takes_the_bytes_and_20_mb_at_most(tmp_path: Path, rank: int, size: int) -> None:
    n = 60_000
    train = Examples(np.random.default_rng(0).integers(0, 256, (n, 28, 28), np.uint8), np.zeros(n, np.uint8))
    test = Examples(train.images[:10], train.labels[:10])
    write_shards(RawData("zeros", train, test, ("zero",)), tmp_path, num_shards=4)
    command = [sys.executable, "-c", LOAD, str(tmp_path), str(rank), str(size)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak_mib, bytes_mib = map(float, output.split())
    print(f"rank {rank} of {size}: {bytes_mib:.1f} MiB of examples, peak {peak_mib:.1f} MiB above the start")
    assert bytes_mib > 44 / size
    assert bytes_mib <= peak_mib <= bytes_mib + 20e6 / 2**20
