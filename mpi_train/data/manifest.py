"""Manifest of a set of shards, ``manifest.json``: contents, sizes and hashes.

A manifest may come from an untrusted place, so each value is checked before it is used: types and bounds by
msgspec, and the name of each file against the one that its place gives, which excludes paths.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import msgspec
from msgspec import Meta, Struct

from mpi_train.data.partition import Partition
from mpi_train.data.sources import how_to_prepare, require_dataset
from mpi_train.runtime import files
from mpi_train.runtime.errors import DataError, UsageError

SCHEMA_VERSION = 1
NAME = "manifest.json"

_MAX_BYTES = 16 << 20
"""Largest accepted manifest, that of about 90,000 shards."""

Text = Annotated[str, Meta(min_length=1, max_length=200)]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class ShardFile(Struct, frozen=True):
    """One file: name, number of examples, size in bytes, SHA-256 in hex."""

    name: Text
    num_examples: Annotated[int, Meta(ge=1, le=2**40)]
    bytes: Annotated[int, Meta(ge=1, le=2**50)]
    sha256: Sha256


class Split(Struct, frozen=True):
    """The files of one split, in the order of their examples."""

    num_examples: int
    files: Annotated[tuple[ShardFile, ...], Meta(min_length=1, max_length=99_999)]


if TYPE_CHECKING:
    Splits = dict[str, Split]
else:

    class Splits(TypedDict):
        """The two splits; msgspec locates an error inside a TypedDict, but not inside a plain dict."""

        train: Split
        test: Split


class Manifest(Struct, frozen=True, kw_only=True):
    """A set of shards; names and shapes are those of ``RawData``.

    Attributes:
        seed: Seed of the partition, and of synthetic data.
        partition: Method that divided the training split. The test split is never shuffled.
        raw_sha256: SHA-256 of the raw content, see ``RawData.sha256``.
    """

    dataset: Text
    class_names: Annotated[tuple[str, ...], Meta(min_length=1, max_length=256)]
    num_classes: int
    image_shape: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=1 << 14)], ...], Meta(min_length=2, max_length=3)
    ]
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    partition: Partition
    raw_sha256: Sha256
    splits: Splits


def shard_name(split: str, index: int, num_shards: int) -> str:
    """Return the name of a shard, such as ``train-00000-of-00004.h5``."""
    return f"{split}-{index:05d}-of-{num_shards:05d}.h5"


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into ``directory``, whole or not at all."""
    content = {"schema_version": SCHEMA_VERSION, **msgspec.to_builtins(manifest)}
    files.write_json(directory / NAME, content)


def read_manifest(directory: Path, dataset: str) -> Manifest:
    """Read and check ``manifest.json`` in ``directory``, which must hold the data set ``dataset``.

    Raises:
        UsageError: The folder has no manifest, and no data set has this name.
        DataError: The manifest is missing, malformed, of another schema version, or of another data set.
    """
    path = directory / NAME
    remedy = how_to_prepare(dataset, directory)
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        require_dataset(dataset)
        message = f"expected shards of {dataset} in {directory}. Got: a folder without {NAME}"
        raise DataError(message, remedy=remedy) from None
    except OSError as error:
        message = f"{path}: expected a file that can be read. Got: {error.strerror}"
        raise DataError(message, remedy=f"ls -l {path}") from error
    try:
        manifest = _parse(content)
    except (ValueError, RecursionError, UsageError) as error:
        raise DataError(f"{path}: {error}", remedy=remedy) from error
    if manifest.dataset != dataset:
        raise DataError(
            f"{directory}: expected shards of {dataset}. Got: shards of {manifest.dataset}",
            remedy=f"--dataset {manifest.dataset}, or another --data folder for the shards of {dataset}",
        )
    return manifest


def _parse(content: bytes) -> Manifest:
    """Decode and check a manifest. Raises ``ValueError``, ``RecursionError`` or ``UsageError``."""
    _expect(len(content) <= _MAX_BYTES, f"at most {_MAX_BYTES} bytes", "more")
    try:
        raw = msgspec.json.decode(content)
    except msgspec.DecodeError as error:
        raise ValueError(f"expected JSON. Got: {error}") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    _expect(version == SCHEMA_VERSION, f"schema_version: {SCHEMA_VERSION}", version)
    try:
        manifest = msgspec.convert(raw, Manifest)
    except msgspec.ValidationError as error:
        expected, _, place = str(error).replace("`", "").partition(" - at ")
        expected = re.sub(r"^Expected |, got \w+", "", expected)
        for key in re.findall(r"\w+", place):
            raw = raw[int(key) if isinstance(raw, list) else key]
        _expect(False, f"{place.removeprefix('$.')}: {expected}", raw)
        raise
    num_classes = len(manifest.class_names)
    _expect(manifest.num_classes == num_classes, f"num_classes: {num_classes}", manifest.num_classes)
    for name, split in manifest.splits.items():
        for index, file in enumerate(split.files):
            expected = shard_name(name, index, len(split.files))
            _expect(file.name == expected, f"name: {expected}", file.name)
            # Shards are not compressed, so the size on disk bounds the memory that a reader allocates.
            least = file.num_examples * (math.prod(manifest.image_shape) + 1)
            _expect(file.bytes >= least, f"bytes of {file.name}: at least {least}", file.bytes)
        total = sum(file.num_examples for file in split.files)
        _expect(split.num_examples == total, f"num_examples of {name}: {total}", split.num_examples)
    return manifest


def _expect(holds: bool, expected: str, received: Any) -> None:
    if not holds:
        shown = repr(received)
        raise ValueError(f"expected {expected}. Got: {shown[:80]}{'...' * (len(shown) > 80)}")
