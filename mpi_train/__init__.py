"""Data-parallel training of Keras models over MPI, and honest comparisons with its alternatives.

The names in ``__all__`` are imported when they are first used: ``import mpi_train`` starts neither MPI nor
TensorFlow.
"""

from __future__ import annotations

import pkgutil
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "FlatModel": "mpi_train.models.flat:FlatModel",
    "JobError": "mpi_train.runtime.errors:JobError",
    "RunRecord": "mpi_train.runs.record:RunRecord",
    "World": "mpi_train.runtime.world:World",
    "check_equal": "mpi_train.training.replicas:check_equal",
    "join": "mpi_train.runtime.world:join",
    "mean_all_reduce": "mpi_train.collectives.hierarchical:mean_all_reduce",
    "read_run": "mpi_train.runs.record:read_run",
    "start_equal": "mpi_train.training.replicas:start_equal",
    "write_shards": "mpi_train.data.shards:write_shards",
}
"""Public names, and the places where they are defined."""

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pkgutil.resolve_name(_EXPORTS[name])
