"""Options of the federated strategy."""

from __future__ import annotations

from dataclasses import dataclass

from mpi_train.runs.config import RanksConfig
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import at_least, option


@dataclass(frozen=True, kw_only=True)
class FederatedConfig(RanksConfig):
    """Options of the federated strategy."""

    batch_size: int = option(64, "examples of one step of one client", changes_result=True)
    epochs: int = option(5, "rounds; in each, clients train and the server averages their models")
    fraction: float = option(1.0, "fraction of the clients drawn for each round", changes_result=True)
    local_epochs: int = option(1, "passes of a client over its data in each round", changes_result=True)
    proximal: float = option(
        0.0, "FedProx: weight of the squared distance to the server's model", "MU", changes_result=True
    )
    server_momentum: float = option(
        0.0, "FedAvgM: momentum of the server's step", "BETA", changes_result=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--local-epochs", self.local_epochs, 1)
        if not 0 < self.fraction <= 1:
            raise UsageError(f"--fraction: expected more than 0, at most 1. Got: {self.fraction:g}")
        if not 0 <= self.proximal < float("inf"):
            raise UsageError(f"--proximal: expected 0 or more. Got: {self.proximal:g}")
        if not 0 <= self.server_momentum < 1:
            raise UsageError(f"--server-momentum: expected 0 to below 1. Got: {self.server_momentum:g}")
