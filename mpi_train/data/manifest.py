"""``manifest.json``: what a set of shards holds, and how to tell that it is whole.

It may come from elsewhere, so each value is checked before anything follows from it: types, bounds,
and that a file's name is the one its place gives it, which leaves no room for paths.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi_train.data.partition import Partition
from mpi_train.data.sources import how_to_prepare, require_dataset
from mpi_train.runtime import files
from mpi_train.runtime.errors import DataError, UsageError

SCHEMA_VERSION = 1
NAME = "manifest.json"
SPLITS = ("train", "test")

# 16 MiB is the manifest of some 90,000 shards.
_MAX_BYTES = 16 << 20
_MAX_SIDE = 1 << 14


@dataclass(frozen=True)
class ShardFile:
    """One file: its name, examples, size in bytes, and the SHA-256 of its bytes in hex."""

    name: str
    num_examples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The files of one split, in the order of their examples."""

    num_examples: int
    files: tuple[ShardFile, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A set of shards.

    Attributes:
        dataset: Name of the data set.
        class_names: Name of each label, from label 0.
        num_classes: Their number.
        image_shape: (height, width) or (height, width, channels).
        seed: Of the partition, and of the drawing where the data is synthetic.
        partition: How the training split was cut. The test split is never shuffled.
        raw_sha256: Of the raw content, see ``RawData.sha256``.
        splits: ``train`` and ``test``.
    """

    dataset: str
    class_names: tuple[str, ...]
    num_classes: int
    image_shape: tuple[int, ...]
    seed: int
    partition: Partition
    raw_sha256: str
    splits: dict[str, Split]


def shard_name(split: str, index: int, num_shards: int) -> str:
    """Such as ``train-00000-of-00004.h5``."""
    return f"{split}-{index:05d}-of-{num_shards:05d}.h5"


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes ``manifest.json`` into ``directory``, whole or not at all."""
    files.write_json(directory / NAME, {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(manifest)})


def read_manifest(directory: Path, dataset: str) -> Manifest:
    """Reads and checks ``manifest.json``.

    Args:
        directory: Folder of the shards.
        dataset: Name of the data set that they must hold.

    Raises:
        UsageError: nothing there, and no data set has this name.
        DataError: missing, not a manifest, of another schema version, or of another data set.
    """
    path = directory / NAME
    remedy = how_to_prepare(dataset, directory)
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        require_dataset(dataset)
        raise DataError(
            f"expected shards of {dataset} in {directory}, found no {NAME}", remedy=remedy
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: expected a file that can be read. Got: {error.strerror}", remedy=f"ls -l {path}"
        ) from error
    try:
        manifest = _parse(content)
    except (_UnexpectedError, UsageError) as error:
        raise DataError(f"{path}: {error}", remedy=remedy) from error
    if manifest.dataset != dataset:
        raise DataError(
            f"{directory}: expected shards of {dataset}. Got: shards of {manifest.dataset}",
            remedy=f"--dataset {manifest.dataset}, or another --data folder for the shards of {dataset}",
        )
    return manifest


class _UnexpectedError(Exception):
    """A value in a manifest that is not what it should be."""


def _parse(content: bytes) -> Manifest:
    if len(content) > _MAX_BYTES:
        raise _UnexpectedError(f"expected at most {_MAX_BYTES} bytes. Got: more")
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _UnexpectedError(f"expected JSON. Got: {error}") from error
    _expect(isinstance(raw, dict), "manifest", "an object", raw)
    _expect(
        raw.get("schema_version") == SCHEMA_VERSION,
        "schema_version",
        SCHEMA_VERSION,
        raw.get("schema_version"),
    )
    class_names = _list(raw, "class_names", 1, 256)
    for name in class_names:
        _expect(isinstance(name, str), "class_names", "strings", name)
    num_classes = _integer(raw, "num_classes", 1, 256)
    _expect(num_classes == len(class_names), "num_classes", len(class_names), num_classes)
    shape = _list(raw, "image_shape", 2, 3)
    for side in shape:
        _expect(
            _is_integer(side) and 1 <= side <= _MAX_SIDE, "image_shape", f"sides of 1 to {_MAX_SIDE}", side
        )
    cut = _object(raw, "partition")
    alpha = cut.get("alpha")
    _expect(alpha is None or _is_number(alpha), "alpha", "a number or null", alpha)
    splits = _object(raw, "splits")
    return Manifest(
        dataset=_text(raw, "dataset"),
        class_names=tuple(class_names),
        num_classes=num_classes,
        image_shape=tuple(shape),
        seed=_integer(raw, "seed", 0, 2**63 - 1),
        partition=Partition(_text(cut, "kind"), alpha),
        raw_sha256=_sha256(raw, "raw_sha256"),
        splits={name: _parse_split(_object(splits, name), name, math.prod(shape)) for name in SPLITS},
    )


def _parse_split(raw: dict[str, Any], split: str, image_bytes: int) -> Split:
    listed = _list(raw, "files", 1, 99_999)
    shards = []
    for index, entry in enumerate(listed):
        _expect(isinstance(entry, dict), "files", "objects", entry)
        name = shard_name(split, index, len(listed))
        _expect(entry.get("name") == name, "name", name, entry.get("name"))
        num_examples = _integer(entry, "num_examples", 1, 2**40)
        # Nothing is compressed: the size on disk bounds the memory that a reader will take.
        size = _integer(entry, "bytes", num_examples * (image_bytes + 1), 2**50)
        shards.append(ShardFile(name, num_examples, size, _sha256(entry, "sha256")))
    total = sum(shard.num_examples for shard in shards)
    _expect(raw.get("num_examples") == total, f"num_examples of {split}", total, raw.get("num_examples"))
    return Split(total, tuple(shards))


def _expect(holds: bool, key: str, expected: object, received: object) -> None:
    if not holds:
        shown = repr(received)
        raise _UnexpectedError(f"expected {key}: {expected}. Got: {shown[:80] + '...' * (len(shown) > 80)}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_integer(value) or isinstance(value, float)


def _integer(raw: dict[str, Any], key: str, low: int, high: int) -> int:
    value = raw.get(key)
    _expect(_is_integer(value) and low <= raw[key] <= high, key, f"an integer from {low} to {high}", value)
    return int(raw[key])


def _text(raw: dict[str, Any], key: str) -> str:
    value = raw.get(key)
    _expect(isinstance(value, str) and 0 < len(value) <= 200, key, "a short string", value)
    return str(value)


def _sha256(raw: dict[str, Any], key: str) -> str:
    value = _text(raw, key)
    _expect(re.fullmatch("[0-9a-f]{64}", value) is not None, key, "64 hex digits", value)
    return value


def _list(raw: dict[str, Any], key: str, shortest: int, longest: int) -> list[Any]:
    value = raw.get(key)
    ok = isinstance(value, list) and shortest <= len(value) <= longest
    _expect(ok, key, f"a list of {shortest} to {longest}", value)
    return list(raw[key])


def _object(raw: dict[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key)
    _expect(isinstance(value, dict), key, "an object", value)
    return dict(raw[key])
