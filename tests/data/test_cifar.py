"""CIFAR-10's binary version, as an archive made here in the official layout."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mpi_train.data import sources
from mpi_train.data.cifar import read_batches
from mpi_train.data.download import RemoteFile
from mpi_train.data.shards import ShardSet, write_shards
from mpi_train.data.sources import CIFAR10, find_raw
from mpi_train.runtime.errors import DataError
from mpi_train.runtime.files import sha256_of

NAMES = [f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)]
TEST = "cifar-10-batches-bin/test_batch.bin"


def write_archive(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def record(label: int, image: np.ndarray) -> bytes:
    """As the format has it: the label, then the red, the green and the blue rows."""
    return bytes([label]) + image.transpose(2, 0, 1).tobytes()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)


@pytest.fixture
def archive(tmp_path: Path, images: np.ndarray) -> Path:
    """Two examples a file, in another order than their names have; and a file that is not asked for."""
    path = tmp_path / "official" / CIFAR10.archive.name
    path.parent.mkdir()
    batches = {
        name: b"".join(record(i % 10, images[i]) for i in (2 * n, 2 * n + 1))
        for n, name in enumerate([*NAMES, TEST])
    }
    write_archive(path, {"cifar-10-batches-bin/readme.html": b"...", **dict(reversed(batches.items()))})
    return path


def test_reads_what_the_format_says(archive: Path, images: np.ndarray) -> None:
    train, test = read_batches(archive, NAMES, 10), read_batches(archive, [TEST], 2)
    np.testing.assert_array_equal(train.images, images[:10])
    np.testing.assert_array_equal(train.labels, np.arange(10))
    np.testing.assert_array_equal(test.images, images[10:])


def test_a_member_that_is_missing_or_of_another_size_is_named(archive: Path) -> None:
    with pytest.raises(DataError, match=r"expected cifar-10-batches-bin/data_batch_6\.bin in it"):
        read_batches(archive, [*NAMES, "cifar-10-batches-bin/data_batch_6.bin"], 12)
    with pytest.raises(DataError, match=r"to be a file of 3073 bytes\. Got: 6146"):
        read_batches(archive, NAMES, 5)


def test_what_is_no_archive_is_refused(tmp_path: Path, archive: Path) -> None:
    whole = archive.read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2]):
        (tmp_path / "broken").write_bytes(content)
        with pytest.raises(DataError, match="expected a tar archive"):
            read_batches(tmp_path / "broken", NAMES, 10)


def test_goes_into_shards_and_back_in_colour(
    archive: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = RemoteFile(archive.name, archive.stat().st_size, sha256_of(archive))
    spec = dataclasses.replace(CIFAR10, archive=file, num_train=10, num_test=2, mirrors=())
    monkeypatch.setitem(sources.OFFICIAL, "cifar10", spec)
    monkeypatch.setenv("CIFAR10_DIR", str(archive.parent))
    raw = find_raw("cifar10")
    assert (raw.image_shape, raw.class_names[3]) == ((32, 32, 3), "cat")
    write_shards(raw, tmp_path / "shards", num_shards=2, seed=1)
    shards = ShardSet.open(tmp_path / "shards", "cifar10")
    back = shards.read("train")
    order = np.argsort(back.labels)
    np.testing.assert_array_equal(back.images[order], images[:10])
    (archive.parent / archive.name).write_bytes(b"other")
    with pytest.raises(DataError, match="truncated or altered"):
        find_raw("cifar10")
