"""A process that prints the seconds of one gradient step, on as many threads as its environment says."""

from __future__ import annotations

import argparse
import sys

import numpy as np

from mpi_train.runtime import devices
from mpi_train.runtime.world import World

REPEATS = 5
NUM_CLASSES = 10


def main() -> None:
    """Reads a model, a batch and a precision from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--image-shape", type=int, nargs=3, required=True)
    args = parser.parse_args()
    with devices.quiet_start(), devices.lean_imports():
        from mpi_train.benchmarks.step.parts import Gradient
        from mpi_train.benchmarks.timing import Work, time_in_turn
        from mpi_train.models import zoo
    shape = tuple(args.image_shape)
    model = zoo.build(args.model, shape, NUM_CLASSES, seed=1, dtype=args.dtype)
    images = np.random.default_rng(1).random((2, args.batch_size, *shape), np.float32)
    labels = np.zeros(args.batch_size, np.int32)
    work = Work("step", Gradient(model, images, labels))
    samples = time_in_turn([work], World(), repeats=REPEATS, sample_s=0.1)["step"]
    sys.stdout.write(f"{np.median(samples)}\n")


if __name__ == "__main__":
    main()
