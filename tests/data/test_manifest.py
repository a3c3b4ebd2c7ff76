from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpi_train.data.manifest import read_manifest
from mpi_train.runtime.errors import DataError, UsageError


def refused(directory: Path, dataset: str = "synthetic") -> DataError:
    with pytest.raises(DataError) as caught:
        read_manifest(directory, dataset)
    assert str(directory) in caught.value.message
    assert caught.value.remedy
    return caught.value


def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for directory in (tmp_path, tmp_path / "gone"):
        assert "without manifest.json" in refused(directory).message
    assert refused(Path("data/fashion_mnist"), "fashion_mnist").remedy == "make data DATASET=fashion_mnist"


def test_nothing_there_and_no_such_data_set(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--dataset: expected one of .* Got: fashoin_mnist"):
        read_manifest(tmp_path, "fashoin_mnist")


def test_shards_of_another_data_set(tiny_shards: Path) -> None:
    error = refused(tiny_shards, "fashion_mnist")
    assert "expected shards of fashion_mnist. Got: shards of synthetic" in error.message
    assert "--dataset synthetic" in str(error.remedy)


def test_not_readable_as_a_manifest(tiny_shards: Path) -> None:
    path = tiny_shards / "manifest.json"
    for content in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"null", b'"manifest"', b"x" * (17 << 20)):
        path.write_bytes(content)
        refused(tiny_shards)
    path.unlink()
    path.mkdir()
    assert "Is a directory" in refused(tiny_shards).message


def set_at(value: Any, place: str, new: Any) -> None:
    """Set the value at ``place``, such as ``splits.train.files.0.name``."""
    *keys, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    for key in keys:
        value = value[key]
    if new is ...:
        del value[last]
    else:
        value[last] = new


FILE = "splits.train.files.0"


@pytest.mark.parametrize(
    ("place", "new"),
    [
        ("schema_version", 2),
        ("schema_version", "1"),
        ("schema_version", ...),
        ("dataset", 5),
        ("dataset", ""),
        ("class_names", []),
        ("class_names", [1] * 10),
        ("class_names", ["one"] * 257),
        ("num_classes", 11),
        ("num_classes", True),
        ("image_shape", [28]),
        ("image_shape", [28, 28, 1, 1]),
        ("image_shape", [28, -28]),
        ("image_shape", [28, 10**9]),
        ("image_shape", [28.0, 28]),
        ("image_shape", [28, 280]),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", None),
        ("partition", "iid"),
        ("partition.kind", "even"),
        ("partition.alpha", 0.5),
        ("partition.alpha", "0.5"),
        ("raw_sha256", "0" * 63),
        ("raw_sha256", "G" * 64),
        ("splits", []),
        ("splits.test", ...),
        ("splits.train.num_examples", 510),
        ("splits.train.num_examples", ...),
        ("splits.train.files", []),
        ("splits.train.files", {}),
        (FILE, None),
        (f"{FILE}.name", "train-00001-of-00004.h5"),
        (f"{FILE}.name", "../train-00000-of-00004.h5"),
        (f"{FILE}.name", "/etc/passwd"),
        (f"{FILE}.num_examples", 0),
        (f"{FILE}.num_examples", 10**9),
        (f"{FILE}.bytes", 1000),
        (f"{FILE}.bytes", 1e6),
        (f"{FILE}.sha256", ["a"]),
        ("splits.train.files.3", ...),
    ],
)
def test_each_value_is_checked(tiny_shards: Path, place: str, new: Any) -> None:
    path = tiny_shards / "manifest.json"
    manifest = json.loads(path.read_text())
    set_at(manifest, place, new)
    path.write_text(json.dumps(manifest))
    assert "Got: " in refused(tiny_shards).message


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        ("seed", -1, "manifest.json: expected seed: int >= 0. Got: -1"),
        (f"{FILE}.bytes", 1e6, f"expected {FILE.replace('.0', '[0]')}.bytes: int. Got: 1000000.0"),
        (f"{FILE}.bytes", 1000, "expected bytes of train-00000-of-00004.h5: at least 100480. Got: 1000"),
        ("splits.test", ..., "expected splits: Object missing required field test. Got: {'train': {"),
    ],
)
def test_a_message_says_what_was_expected_and_received(
    tiny_shards: Path, place: str, new: Any, message: str
) -> None:
    path = tiny_shards / "manifest.json"
    manifest = json.loads(path.read_text())
    set_at(manifest, place, new)
    path.write_text(json.dumps(manifest))
    assert message in refused(tiny_shards).message


def test_another_schema_version_is_named(tiny_shards: Path) -> None:
    path = tiny_shards / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    assert "expected schema_version: 1. Got: 2" in refused(tiny_shards).message
