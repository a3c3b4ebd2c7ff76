"""Small data sets on disk."""

from __future__ import annotations

import dataclasses
import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from mpi_train.data import sources, synthetic
from mpi_train.data.download import RemoteFile
from mpi_train.data.examples import RawData
from mpi_train.data.shards import write_shards
from mpi_train.runtime.files import sha256_of

NUM_TRAIN, NUM_TEST = 509, 128


@pytest.fixture(scope="session")
def raw() -> RawData:
    """509 training images, which no small number of ranks divides, and 128 test images."""
    return synthetic.draw(3, NUM_TRAIN, NUM_TEST)


@pytest.fixture
def tiny_shards(tmp_path: Path, raw: RawData) -> Path:
    """A folder of 4 shards of ``raw``, for one test to read or to damage."""
    directory = tmp_path / "synthetic"
    write_shards(raw, directory, num_shards=4, seed=7)
    return directory


@pytest.fixture(autouse=True)
def no_raw_data_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Points every place where raw data is looked for at nothing."""
    monkeypatch.delenv("FASHION_MNIST_DIR", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "no-keras"))
    monkeypatch.setenv("MPI_TRAIN_CACHE", str(tmp_path / "cache"))


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


@pytest.fixture
def idx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of four small IDX files, which replace Fashion-MNIST's: names, sizes and hashes."""
    folder = tmp_path / "official"
    folder.mkdir()
    rng = np.random.default_rng(0)
    spec, files = sources.OFFICIAL["fashion_mnist"], []
    for file, shape in zip(spec.files, [(30, 28, 28), (30,), (12, 28, 28), (12,)], strict=True):
        path = folder / file.name
        write_idx(path, rng.integers(0, 10, shape, np.uint8))
        files.append(RemoteFile(file.name, path.stat().st_size, sha256_of(path)))
    small = dataclasses.replace(spec, files=tuple(files), num_train=30, num_test=12, mirrors=())
    monkeypatch.setitem(sources.OFFICIAL, "fashion_mnist", small)
    return folder


# Taken before the fixture above hides it.
_OFFICIAL = os.environ.get("FASHION_MNIST_DIR")


@pytest.fixture
def official_files() -> Path:
    """The official Fashion-MNIST files, where this machine has them."""
    if not _OFFICIAL:
        pytest.skip("needs FASHION_MNIST_DIR with the official Fashion-MNIST files")
    return Path(_OFFICIAL)
