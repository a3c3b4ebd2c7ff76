"""The prepare_data command: from the name of a data set to sound shards on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mpi_train.data.partition import IID, KINDS, Partition
from mpi_train.data.shards import ShardSet, write_shards
from mpi_train.data.sources import DATASETS, MissingRawDataError, find_raw, require_dataset
from mpi_train.data.synthetic import stand_in_for
from mpi_train.runtime.errors import DataError, UsageError
from mpi_train.runtime.flags import Parser, at_least
from mpi_train.runtime.world import alone

_DEFAULT_ALPHA = 0.5


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the flags ``argv`` (default: those of the process)."""
    description = "Divide a data set into HDF5 shards with a manifest."
    parser = Parser(prog="python jobs/prepare_data.py", description=description)
    alpha_help = f"skew of dirichlet: the smaller, the stronger (default: {_DEFAULT_ALPHA})"
    parser.add_argument("--dataset", default="fashion_mnist", help=", ".join(DATASETS))
    parser.add_argument("--source", type=Path, metavar="DIR", help="folder of the official raw files")
    data_help = "folder of the shards (default: data/DATASET)"
    parser.add_argument("--data", type=Path, metavar="DIR", help=data_help)
    parser.add_argument("--shards", type=int, default=4, help="number of training shards")
    parser.add_argument("--partition", choices=KINDS, default="iid", help="division of the training split")
    parser.add_argument("--alpha", type=float, help=alpha_help)
    parser.add_argument("--seed", type=int, default=1, help="seed of the partition and of synthetic images")
    or_help = "use synthetic data if the raw data is not available"
    parser.add_argument("--or-synthetic", action="store_true", help=or_help)
    options = parser.parse_args(argv)
    alone(job="prepare_data")
    at_least("--shards", options.shards, 1)
    at_least("--seed", options.seed, 0)
    alpha = _DEFAULT_ALPHA if options.alpha is None and options.partition == "dirichlet" else options.alpha
    method = Partition(options.partition, alpha)
    dataset = options.dataset
    directory = options.data or Path("data") / dataset
    try:
        made = prepare(dataset, directory, options.shards, options.seed, method, options.source)
    except MissingRawDataError as error:
        stand_in = stand_in_for(dataset)
        if not options.or_synthetic or stand_in is None:
            raise
        print(error.message)
        print(f"no {dataset} available; using the synthetic stand-in {stand_in}, which the results will name")
        # The folder that was asked for stays free for the real data.
        dataset, directory = stand_in, directory.with_name(stand_in)
        made = prepare(dataset, directory, options.shards, options.seed, method)
    print(f"{dataset}: {options.shards} shards {'written' if made else 'exist already, and are sound'}")
    print(directory)


def prepare(
    dataset: str,
    directory: Path,
    num_shards: int = 4,
    seed: int = 1,
    method: Partition = IID,
    source: Path | None = None,
) -> bool:
    """Write the shards into ``directory``; return False if they existed with these settings and sound.

    Arguments and errors are those of ``sources.find_raw`` and ``shards.write_shards``.
    """
    require_dataset(dataset)
    with suppress(DataError):
        shards = ShardSet.open(directory, dataset)
        made = shards.manifest
        if (len(made.splits["train"].files), made.seed, made.partition) == (num_shards, seed, method):
            shards.verify()
            return False
    # Checked before a download or a drawing that would be wasted.
    nearest = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(
            f"--data: expected a folder that can be written. Got: {directory}",
            remedy="--data with another folder",
        )
    write_shards(find_raw(dataset, source, seed), directory, num_shards, seed, method)
    return True
