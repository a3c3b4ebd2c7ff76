"""Readers of IDX files and of CIFAR-10's binary version."""

from __future__ import annotations

import dataclasses
import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mpi_train.data import sources
from mpi_train.data.download import RemoteFile
from mpi_train.data.formats import read_cifar10, read_idx
from mpi_train.data.shards import ShardSet, write_shards
from mpi_train.data.sources import OFFICIAL, find_raw
from mpi_train.runtime.errors import DataError
from mpi_train.runtime.files import sha256_of

HEADER = bytes([0, 0, 8, 2, 0, 0, 0, 3, 0, 0, 0, 4])
CONTENT = bytes(range(12))


def test_idx_is_read_as_the_header_says(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(HEADER + CONTENT))
    array = read_idx(path, (3, 4))
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, np.arange(12).reshape(3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + CONTENT[:-1], "expected 12 bytes after the header. Got: 11 bytes"),
        (HEADER + CONTENT + b"!", "expected 12 bytes after the header. Got: more"),
        (HEADER[:5], "expected an IDX header of 12 bytes. Got: 5"),
        (
            b"\0\0\x0d\x02" + HEADER[4:] + CONTENT,
            "expected the IDX magic number 00000802. Got: 00000d02",
        ),
        (
            b"\0\0\x08\x03" + HEADER[4:] + CONTENT,
            "expected the IDX magic number 00000802. Got: 00000803",
        ),
        (HEADER[:4] + b"\xff" * 8 + CONTENT, r"shape \(3, 4\). Got: \(4294967295, 4294967295\)"),
    ],
)
def test_other_idx_content_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=message):
        read_idx(path, (3, 4))


def test_a_truncated_idx_stream_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(HEADER + CONTENT)[:-9])
    with pytest.raises(DataError, match="compressed with gzip"):
        read_idx(path, (3, 4))


def test_an_idx_file_that_is_missing_or_not_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    with pytest.raises(DataError, match="No such file"):
        read_idx(path, (3, 4))
    path.write_bytes(HEADER + CONTENT)
    with pytest.raises(DataError, match="Not a gzipped file"):
        read_idx(path, (3, 4))


NAMES = [
    f"cifar-10-batches-bin/{name}.bin" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
]


def write_archive(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def record(label: int, image: np.ndarray) -> bytes:
    """An example in the format: the label, then the red, the green and the blue rows."""
    return bytes([label]) + image.transpose(2, 0, 1).tobytes()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)


@pytest.fixture
def archive(tmp_path: Path, images: np.ndarray) -> Path:
    """Two examples a file, with the files in reverse order, and a file that is not asked for."""
    path = tmp_path / "official" / OFFICIAL["cifar10"].files[0].name
    path.parent.mkdir()
    batches = {
        name: b"".join(record(i % 10, images[i]) for i in (2 * n, 2 * n + 1)) for n, name in enumerate(NAMES)
    }
    write_archive(path, {"cifar-10-batches-bin/readme.html": b"...", **dict(reversed(batches.items()))})
    return path


def test_cifar10_is_read_as_the_format_says(archive: Path, images: np.ndarray) -> None:
    train, test = read_cifar10([archive], 10, 2)
    np.testing.assert_array_equal(train.images, images[:10])
    np.testing.assert_array_equal(train.labels, np.arange(10))
    np.testing.assert_array_equal(test.images, images[10:])
    np.testing.assert_array_equal(test.labels, [0, 1])


def test_a_member_that_is_missing_or_of_another_size_is_named(archive: Path) -> None:
    with pytest.raises(DataError, match=r"test_batch\.bin to be a file of 3073 bytes\. Got: 6146"):
        read_cifar10([archive], 10, 1)
    write_archive(archive, dict.fromkeys(NAMES[1:], bytes(3073)))
    with pytest.raises(DataError, match=r"expected cifar-10-batches-bin/data_batch_1\.bin in the archive"):
        read_cifar10([archive], 5, 1)


def test_what_is_no_archive_is_refused(tmp_path: Path, archive: Path) -> None:
    whole = archive.read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2]):
        (tmp_path / "broken").write_bytes(content)
        with pytest.raises(DataError, match="expected a tar archive"):
            read_cifar10([tmp_path / "broken"], 10, 2)


def test_cifar10_goes_into_shards_and_back_in_colour(
    archive: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = RemoteFile(archive.name, archive.stat().st_size, sha256_of(archive))
    spec = dataclasses.replace(OFFICIAL["cifar10"], files=(file,), num_train=10, num_test=2, mirrors=())
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
