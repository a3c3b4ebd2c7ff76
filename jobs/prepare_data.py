"""Cuts a data set into HDF5 shards, for the login node or a laptop. The last line of stdout is their folder.

    python jobs/prepare_data.py                                      # Fashion-MNIST into data/fashion_mnist
    python jobs/prepare_data.py --source ~/fashion-mnist --shards 8  # from a folder of the official files
    python jobs/prepare_data.py --dataset synthetic                  # drawn, for machines with no data
    python jobs/prepare_data.py --partition dirichlet --alpha 0.3    # skewed by label
    make data DATASET=fashion_mnist SHARDS=4

Shards that are already what is asked for, and sound, are left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mpi_train.data.partition import KINDS, Partition
from mpi_train.data.prepare import prepare
from mpi_train.data.sources import DATASETS, MissingRawDataError
from mpi_train.data.synthetic import stand_in_for
from mpi_train.runs.job import guarded
from mpi_train.runtime.flags import Parser, at_least
from mpi_train.runtime.world import alone

_DEFAULT_ALPHA = 0.5


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="python jobs/prepare_data.py", description="Cuts a data set into HDF5 shards with a manifest."
    )
    parser.add_argument("--dataset", default="fashion_mnist", help=", ".join(DATASETS))
    parser.add_argument("--source", type=Path, metavar="DIR", help="folder of the official raw files")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder for the shards (default: data/DATASET)"
    )
    parser.add_argument("--shards", type=int, default=4, help="number of training shards")
    parser.add_argument("--partition", choices=KINDS, default="iid", help="how examples are dealt out")
    parser.add_argument(
        "--alpha", type=float, help=f"skew of dirichlet: the smaller the stronger (default: {_DEFAULT_ALPHA})"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the partition, and of synthetic images")
    parser.add_argument(
        "--or-synthetic", action="store_true", help="draw a stand-in where the raw data is nowhere to be had"
    )
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    alone(job="prepare_data")
    at_least("--shards", options.shards, 1)
    at_least("--seed", options.seed, 0)
    alpha = _DEFAULT_ALPHA if options.alpha is None and options.partition == "dirichlet" else options.alpha
    cut = Partition(options.partition, alpha)

    def ensure(dataset: str, directory: Path, source: Path | None = None) -> None:
        made = prepare(
            dataset, directory, num_shards=options.shards, seed=options.seed, partition=cut, source=source
        )
        print(
            f"{dataset}: {options.shards} shards {'written' if made else 'were there already, and are sound'}"
        )
        print(directory)

    directory = options.data or Path("data") / options.dataset
    try:
        ensure(options.dataset, directory, options.source)
    except MissingRawDataError as error:
        if not options.or_synthetic:
            raise
        print(error.message)
        print(f"no {options.dataset} to be had; going on with the synthetic stand-in: results will say so")
        # Beside the folder that was asked for, which stays free for the real thing.
        stand_in = stand_in_for(options.dataset)
        ensure(stand_in, directory.with_name(stand_in))


if __name__ == "__main__":
    guarded(main)
