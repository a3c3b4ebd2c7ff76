"""Damaged and malicious shards and manifests: refused, or read with their original contents."""

from __future__ import annotations

import json
import random
import re
import resource
import shutil
from pathlib import Path

import pytest

from mpi_train.data.examples import Examples
from mpi_train.data.shards import ShardSet
from mpi_train.runtime import files
from mpi_train.runtime.errors import DataError, JobError

pytestmark = [pytest.mark.mpi_skip, pytest.mark.timeout(300)]

KINDS = ("flip", "cut", "swap", "blank", "grow", "header")


def mutate(good: bytes, kind: str, rng: random.Random) -> bytes:
    data = bytearray(good)
    if kind == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "swap":
        size = rng.randrange(1, 200)
        a, b = (rng.randrange(len(data) - size) for _ in range(2))
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    elif kind == "blank":
        start = rng.randrange(len(data))
        data[start : start + 64] = rng.choice((b"\0", b"\xff")) * len(data[start : start + 64])
    elif kind == "grow":
        data += rng.randbytes(rng.randrange(1, 1000))
    else:
        # Sizes and addresses in the first bytes of an HDF5 file, or names in those of a manifest.
        start = rng.randrange(min(2000, len(data) - 8))
        data[start : start + 8] = rng.choice((b"\xff" * 7 + b"\x7f", rng.randbytes(8)))
    return bytes(data)


def read_all(folder: Path) -> list[Examples]:
    shards = ShardSet.open(folder, "synthetic")
    return [shards.read(split, rank, 2) for split in ("train", "test") for rank in range(2)]


@pytest.mark.parametrize("resigned", [False, True], ids=["as_it_is", "with_a_manifest_that_agrees"])
def test_mutated_shards(resigned: bool, tiny_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(tiny_shards, folder)
    expected = read_all(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    rng = random.Random(7)
    shards = sorted(folder.glob("*.h5"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused: list[str] = []
    for number in range(200):
        path = rng.choice(shards)
        good = path.read_bytes()
        path.write_bytes(mutate(good, KINDS[number % len(KINDS)], rng))
        if resigned:
            # An attacker would write a manifest that agrees with the file.
            agreeing = json.loads(json.dumps(manifest))
            for split in agreeing["splits"].values():
                for shard in split["files"]:
                    if shard["name"] == path.name:
                        shard |= {"bytes": path.stat().st_size, "sha256": files.sha256_of(path)}
            (folder / "manifest.json").write_text(json.dumps(agreeing))
        try:
            found = read_all(folder)
        except DataError as error:
            refused.append(error.message)
        else:
            for mine, theirs in zip(found, expected, strict=True):
                assert mine.images.shape == theirs.images.shape
                # With a forged manifest only the shape and the range of the labels are certain.
                assert resigned or (mine.images == theirs.images).all()
                assert mine.labels.max() < 10
        path.write_bytes(good)
    assert len(refused) > 100
    assert all("expected" in message and "Got: " in message for message in refused)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_mutated_manifests(tiny_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(tiny_shards, folder)
    expected = read_all(folder)
    path = folder / "manifest.json"
    good = path.read_bytes()
    rng = random.Random(3)
    refused: list[str] = []
    for number in range(200):
        path.write_bytes(mutate(good, KINDS[number % len(KINDS)], rng))
        try:
            found = read_all(folder)
        except JobError as error:
            refused.append(error.message)
        else:
            assert all((a.images == b.images).all() for a, b in zip(found, expected, strict=True))
    assert len(refused) > 100


def test_a_manifest_of_nested_lists_or_of_huge_numbers_is_refused(tiny_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(tiny_shards, folder)
    path = folder / "manifest.json"
    good = json.loads(path.read_text())
    huge = json.loads(json.dumps(good))
    huge["splits"]["train"]["files"][0]["num_examples"] = 2**62
    outside = json.loads(json.dumps(good))
    outside["splits"]["train"]["files"][0]["name"] = "../train-00000-of-00004.h5"
    for text in ("[" * 100_000, json.dumps(huge), json.dumps(outside), "1e999", '"\\ud800"'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError):
            read_all(folder)


def test_no_code_is_ever_loaded() -> None:
    """Weights come from a seed or a checkpoint; nothing in the suite opens a pickle or a saved model."""
    sources = (Path(__file__).parents[2] / "mpi_train").rglob("*.py")
    for source in sources:
        text = source.read_text()
        for word in ("import pickle", r"load_model\(", r"\beval\(", r"\bexec\(", "allow_pickle=True"):
            assert not re.search(word, text), f"{source}: {word}"
