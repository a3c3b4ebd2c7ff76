"""Where raw data comes from: a folder of the user's, the Keras cache, a download, or the drawing board."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from mpi_train.data import cifar, download, synthetic
from mpi_train.data.download import RemoteFile
from mpi_train.data.examples import Examples, RawData
from mpi_train.data.idx import read_idx
from mpi_train.runtime import files
from mpi_train.runtime.errors import DataError, UsageError

__all__ = ["DATASETS", "MissingRawDataError", "RawData", "find_raw", "how_to_prepare", "require_dataset"]


class MissingRawDataError(DataError):
    """The raw files of a data set are nowhere. Files that are there but corrupt are a plain ``DataError``."""


@dataclass(frozen=True, kw_only=True)
class IdxFiles:
    """A data set of four IDX files.

    Attributes:
        title: Its name in prose.
        variable: Environment variable that may hold the folder of the files.
        keras_folder: Folder below ``datasets`` in the Keras cache, where Keras keeps these files.
        mirrors: Base URLs.
        class_names: Name of each label, from label 0.
        image_shape: (height, width).
        num_train, num_test: Number of examples.
        train_images, train_labels, test_images, test_labels: The files.
    """

    title: str
    variable: str
    keras_folder: str | None
    mirrors: tuple[str, ...]
    class_names: tuple[str, ...]
    image_shape: tuple[int, int]
    num_train: int
    num_test: int
    train_images: RemoteFile
    train_labels: RemoteFile
    test_images: RemoteFile
    test_labels: RemoteFile

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        return (self.train_images, self.train_labels, self.test_images, self.test_labels)

    def read(self, folder: Path) -> tuple[Examples, Examples]:
        """The training and the test split. Raises ``DataError``."""
        train, test = (
            Examples(
                read_idx(folder / images.name, (num_examples, *self.image_shape)),
                read_idx(folder / labels.name, (num_examples,)),
            )
            for images, labels, num_examples in (
                (self.train_images, self.train_labels, self.num_train),
                (self.test_images, self.test_labels, self.num_test),
            )
        )
        return train, test


@dataclass(frozen=True, kw_only=True)
class CifarFiles:
    """CIFAR-10 in its binary version.

    Attributes:
        title, variable, mirrors, class_names: As for ``IdxFiles``.
        archive: The one file.
        num_train, num_test: Number of examples.
    """

    title: str
    variable: str
    mirrors: tuple[str, ...]
    class_names: tuple[str, ...]
    archive: RemoteFile
    num_train: int = 50_000
    num_test: int = 10_000
    # Keras keeps the version that is pickled.
    keras_folder: None = None

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        return (self.archive,)

    def read(self, folder: Path) -> tuple[Examples, Examples]:
        """The training and the test split. Raises ``DataError``."""
        path = folder / self.archive.name
        train = [f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)]
        test = ["cifar-10-batches-bin/test_batch.bin"]
        return cifar.read_batches(path, train, self.num_train), cifar.read_batches(path, test, self.num_test)


# Hashes: of the files at github.com/zalandoresearch/fashion-mnist, which Keras serves as well.
FASHION_MNIST = IdxFiles(
    title="Fashion-MNIST",
    variable="FASHION_MNIST_DIR",
    keras_folder="fashion-mnist",
    mirrors=(
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    class_names=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    image_shape=(28, 28),
    num_train=60_000,
    num_test=10_000,
    train_images=RemoteFile(
        "train-images-idx3-ubyte.gz",
        26_421_880,
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    ),
    train_labels=RemoteFile(
        "train-labels-idx1-ubyte.gz",
        29_515,
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    ),
    test_images=RemoteFile(
        "t10k-images-idx3-ubyte.gz",
        4_422_102,
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    ),
    test_labels=RemoteFile(
        "t10k-labels-idx1-ubyte.gz",
        5_148,
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
)

# Hashes: of the files that were at yann.lecun.com/exdb/mnist; the mirrors are Google's and PyTorch's.
MNIST = IdxFiles(
    title="MNIST",
    variable="MNIST_DIR",
    keras_folder=None,
    mirrors=(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    class_names=tuple("0123456789"),
    image_shape=(28, 28),
    num_train=60_000,
    num_test=10_000,
    train_images=RemoteFile(
        "train-images-idx3-ubyte.gz",
        9_912_422,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    train_labels=RemoteFile(
        "train-labels-idx1-ubyte.gz",
        28_881,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    test_images=RemoteFile(
        "t10k-images-idx3-ubyte.gz",
        1_648_877,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    test_labels=RemoteFile(
        "t10k-labels-idx1-ubyte.gz",
        4_542,
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
)

CIFAR10 = CifarFiles(
    title="CIFAR-10",
    variable="CIFAR10_DIR",
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
    class_names=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    archive=RemoteFile(
        "cifar-10-binary.tar.gz",
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
)

OFFICIAL: dict[str, IdxFiles | CifarFiles] = {
    "fashion_mnist": FASHION_MNIST,
    "mnist": MNIST,
    "cifar10": CIFAR10,
}

DATASETS = (*OFFICIAL, *synthetic.STAND_INS)
"""Names that ``--dataset`` takes."""


def require_dataset(name: str) -> None:
    """Raises ``UsageError``, with the near names, when ``name`` is not one of ``DATASETS``."""
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=2) or DATASETS
        raise UsageError(
            f"--dataset: expected one of {', '.join(DATASETS)}. Got: {name}",
            remedy=f"--dataset {' or '.join(near)}",
        )


def how_to_prepare(dataset: str, directory: Path | None = None) -> str:
    """The command that makes the shards of ``dataset`` in ``directory`` (default: data/DATASET)."""
    if directory is None or directory == Path("data") / dataset:
        return f"make data DATASET={dataset}"
    return f"python jobs/prepare_data.py --dataset {dataset} --data {directory}"


def find_raw(dataset: str, source: Path | None = None, seed: int = 1) -> RawData:
    """Reads, downloads or draws a data set.

    The places are tried in this order: ``source``, or the folder in the data set's environment
    variable (such as ``FASHION_MNIST_DIR``); the Keras cache; our own cache (``MPI_TRAIN_CACHE``,
    else ``~/.cache/mpi-train``), filled by a download. Wherever files are found, their SHA-256 counts.

    Args:
        dataset: One of ``DATASETS``.
        source: Folder of the official files.
        seed: Of the drawing, for a stand-in.

    Raises:
        UsageError: an unknown data set, or a source for a drawn one.
        MissingRawDataError: no files in any of the places, and nothing to download from.
        DataError: the source that was named lacks a file, or a file is not the official one.
    """
    require_dataset(dataset)
    if dataset in synthetic.STAND_INS:
        if source is not None:
            raise UsageError(
                f"--source: {dataset} is drawn from --seed. Got: --source {source}",
                remedy=f"leave --source out, or --dataset {synthetic.STAND_INS[dataset].stands_for}",
            )
        return synthetic.draw(seed, name=dataset)
    spec = OFFICIAL[dataset]
    folder = _locate(dataset, spec, source)
    for file in spec.files:
        _verify(folder / file.name, file)
    train, test = spec.read(folder)
    return RawData(name=dataset, train=train, test=test, class_names=spec.class_names)


def _locate(dataset: str, spec: IdxFiles | CifarFiles, source: Path | None) -> Path:
    """The folder that holds the raw files, filled by a download where there was none."""
    named = source or (Path(value) if (value := os.environ.get(spec.variable)) else None)
    if named is not None:
        name = "--source" if source is not None else spec.variable
        if not named.is_dir():
            raise DataError(f"{name}: expected a folder with {spec.title}'s files. Got: {named}")
        missing = [file.name for file in spec.files if not (named / file.name).exists()]
        if missing:
            raise DataError(
                f"{name}: expected {', '.join(missing)} in {named}, found nothing of that name",
                remedy=f"{name} with the folder of the official files, or without it to download them",
            )
        return named
    looked = ["--source", spec.variable]
    if spec.keras_folder is not None:
        keras = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "datasets" / spec.keras_folder
        if all((keras / file.name).exists() for file in spec.files):
            return keras
        looked.append(str(keras))
    cache = Path(os.environ.get("MPI_TRAIN_CACHE") or Path.home() / ".cache" / "mpi-train") / dataset
    try:
        download.fetch(spec.files, spec.mirrors, cache)
    except DataError as error:
        raise MissingRawDataError(
            f"no {spec.title} found: not in {', '.join(looked)} or {cache}, "
            f"and it cannot be downloaded\n  {error.message}",
            remedy=f"{how_to_prepare(dataset)} where there is a network, or export {spec.variable}=DIR "
            f"with the official files, or go on without: {how_to_prepare(synthetic.stand_in_for(dataset))}",
        ) from error
    return cache


def _verify(path: Path, file: RemoteFile) -> None:
    try:
        received = files.sha256_of(path)
    except OSError as error:
        raise DataError(f"{path}: expected a file that can be read. Got: {error.strerror}") from error
    if received != file.sha256:
        raise DataError(
            f"{path}: truncated or altered. Expected SHA-256 {file.sha256} ({file.num_bytes} bytes). "
            f"Got: {received} ({path.stat().st_size} bytes)",
            remedy=f"rm {path}, then copy the official file there (a cache fills itself again)",
        )
