"""Raw data by name: from a folder of the user, the Keras cache, a download, or a random generator."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpi_train.data import download, synthetic
from mpi_train.data.download import RemoteFile
from mpi_train.data.examples import Examples, RawData
from mpi_train.data.formats import read_cifar10, read_mnist
from mpi_train.runtime.errors import DataError, UsageError
from mpi_train.runtime.files import sha256_of


class MissingRawDataError(DataError):
    """Raw files that are in none of the places. Corrupt files raise a plain ``DataError``."""


@dataclass(frozen=True)
class OfficialFiles:
    """Official files of a data set."""

    title: str  # name in prose
    variable: str  # environment variable that may hold the folder of the files
    mirrors: tuple[str, ...]  # base URLs
    files: tuple[RemoteFile, ...]  # in the order in which ``read`` takes them
    read: Callable[[Sequence[Path], int, int], tuple[Examples, Examples]]  # returns training and test split
    class_names: tuple[str, ...]  # name of each label, from label 0
    num_train: int
    num_test: int = 10_000
    keras_folder: str | None = None  # below ``datasets`` in the Keras cache, if Keras caches the same files


def _mnist_files(*sizes_and_hashes: tuple[int, str]) -> tuple[RemoteFile, ...]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    pairs = zip(names, sizes_and_hashes, strict=True)
    return tuple(RemoteFile(f"{name}-ubyte.gz", size, digest) for name, (size, digest) in pairs)


_CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"

# The hashes of Fashion-MNIST are those of the files at github.com/zalandoresearch/fashion-mnist, which Keras
# serves as well; the hashes of MNIST are those of the files that were at yann.lecun.com/exdb/mnist.
OFFICIAL = {
    "fashion_mnist": OfficialFiles(
        "Fashion-MNIST",
        "FASHION_MNIST_DIR",
        (
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        _mnist_files(
            (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
        read_mnist,
        (
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        num_train=60_000,
        keras_folder="fashion-mnist",
    ),
    "mnist": OfficialFiles(
        "MNIST",
        "MNIST_DIR",
        (
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ),
        _mnist_files(
            (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
        read_mnist,
        tuple("0123456789"),
        num_train=60_000,
    ),
    # Keras caches only the pickled version of CIFAR-10.
    "cifar10": OfficialFiles(
        "CIFAR-10",
        "CIFAR10_DIR",
        ("https://www.cs.toronto.edu/~kriz/",),
        (RemoteFile("cifar-10-binary.tar.gz", 170_052_171, _CIFAR10_SHA256),),
        read_cifar10,
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        num_train=50_000,
    ),
}

DATASETS = (*OFFICIAL, *synthetic.STAND_INS)
"""Names that ``--dataset`` takes."""


def require_dataset(name: str) -> None:
    """Raise ``UsageError`` with the near names if ``name`` is not one of ``DATASETS``."""
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=2) or DATASETS
        raise UsageError(
            f"--dataset: expected one of {', '.join(DATASETS)}. Got: {name}",
            remedy=f"--dataset {' or '.join(near)}",
        )


def how_to_prepare(dataset: str, directory: Path | None = None) -> str:
    """Return the command that makes the shards of ``dataset`` in ``directory`` (default: data/DATASET)."""
    if directory is None or directory == Path("data") / dataset:
        return f"make data DATASET={dataset}"
    return f"python jobs/prepare_data.py --dataset {dataset} --data {directory}"


def find_raw(dataset: str, source: Path | None = None, seed: int = 1) -> RawData:
    """Read, download or draw a data set.

    The places are tried in this order: ``source``, or the folder in the data set's environment variable (such
    as ``FASHION_MNIST_DIR``); the Keras cache; the cache of this package (``MPI_TRAIN_CACHE``, default
    ``~/.cache/mpi-train``), filled by a download. The SHA-256 of the files is checked in every place. The
    ``seed`` is that of a synthetic data set.

    Raises:
        UsageError: The data set is unknown, or a source was given for a synthetic one.
        MissingRawDataError: The files are in none of the places, and no mirror delivers them.
        DataError: The named source lacks a file, or a file differs from the official one.
    """
    require_dataset(dataset)
    if dataset in synthetic.STAND_INS:
        if source is not None:
            raise UsageError(
                f"--source: expected none with {dataset}, which is drawn from --seed. Got: {source}",
                remedy=f"leave --source out, or --dataset {synthetic.STAND_INS[dataset].stands_for}",
            )
        return synthetic.draw(seed, name=dataset)
    spec = OFFICIAL[dataset]
    folder = _locate(dataset, spec, source)
    for file in spec.files:
        _verify(folder / file.name, file)
    paths = [folder / file.name for file in spec.files]
    return RawData(dataset, *spec.read(paths, spec.num_train, spec.num_test), spec.class_names)


def _locate(dataset: str, spec: OfficialFiles, source: Path | None) -> Path:
    """Return the folder of the raw files, after a download if they are in no other place."""
    named = source or (Path(value) if (value := os.environ.get(spec.variable)) else None)
    if named is not None:
        name = "--source" if source is not None else spec.variable
        missing = [file.name for file in spec.files if not (named / file.name).exists()]
        if missing:
            raise DataError(
                f"{name}: expected a folder of {spec.title}. Got: {named} without {', '.join(missing)}",
                remedy=f"{name} with the folder of the official files, or without it to download them",
            )
        return named
    places = ["--source", spec.variable]
    if spec.keras_folder is not None:
        keras = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "datasets" / spec.keras_folder
        if all((keras / file.name).exists() for file in spec.files):
            return keras
        places.append(str(keras))
    cache = Path(os.environ.get("MPI_TRAIN_CACHE") or Path.home() / ".cache" / "mpi-train") / dataset
    try:
        download.fetch(spec.files, spec.mirrors, cache)
    except DataError as error:
        stand_in = synthetic.stand_in_for(dataset)
        hint = f", or use synthetic data: {how_to_prepare(stand_in)}" if stand_in else ""
        raise MissingRawDataError(
            f"no {spec.title} found: not in {', '.join(places)} or {cache}, and the download failed\n"
            f"  {error.message}",
            remedy=f"{how_to_prepare(dataset)} on a machine with a network, or export {spec.variable}=DIR "
            f"with the official files{hint}",
        ) from error
    return cache


def _verify(path: Path, file: RemoteFile) -> None:
    """Raise ``DataError`` if the file is unreadable or its SHA-256 is another one."""
    try:
        received, num_bytes = sha256_of(path), path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: expected a file that can be read. Got: {error.strerror}") from error
    if received != file.sha256:
        raise DataError(
            f"{path}: truncated or altered. Expected SHA-256 {file.sha256} ({file.num_bytes} bytes). "
            f"Got: {received} ({num_bytes} bytes)",
            remedy=f"rm {path}, then copy the official file there (a cache downloads it again)",
        )
