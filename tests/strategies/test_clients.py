"""Who the clients are, who takes part in a round, and what their data is."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mpi_train.data.shards import ShardSet
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.world import World
from mpi_train.strategies.federated.clients import choose, clients_of
from tests.in_process import TrainJob, config_of, refused


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_each_shard_is_a_client_of_one_rank(tiny: ShardSet, num_ranks: int) -> None:
    clients = clients_of(tiny.manifest, num_ranks)
    assert [client.number for client in clients] == [0, 1, 2, 3]
    assert [client.start for client in clients[1:]] == [client.stop for client in clients[:-1]]
    assert (clients[0].start, clients[-1].stop) == (0, 509)
    ranks = [client.rank for client in clients]
    assert ranks == sorted(ranks)
    assert set(ranks) == set(range(num_ranks))


def test_fewer_clients_than_ranks_are_refused(tiny: ShardSet) -> None:
    with pytest.raises(UsageError, match=r"for each of the 5 ranks\. Got: 4 shards"):
        clients_of(tiny.manifest, 5)


def test_a_round_draws_its_part_of_the_clients() -> None:
    rounds = [choose(10, 0.3, 1, number) for number in range(1, 200)]
    assert all(len(set(chosen)) == 3 and chosen == sorted(chosen) for chosen in rounds)
    times = np.bincount(np.concatenate(rounds), minlength=10)
    assert times.min() > 35
    assert (
        rounds[:3]
        == [choose(10, 0.3, 1, number) for number in (1, 2, 3)]
        != [choose(10, 0.3, 2, number) for number in (1, 2, 3)]
    )
    assert choose(10, 0.01, 1, 1)
    assert choose(4, 1, 1, 1) == [0, 1, 2, 3]


@pytest.mark.ranks(4)
@pytest.mark.mpi(min_size=2)
@pytest.mark.timeout(240)
def test_the_same_model_on_any_number_of_ranks_and_a_log_of_its_rounds(
    train_job: TrainJob, world: World
) -> None:
    flags = ["--epochs", "4", "--fraction", "0.75", "--batch-size", "12"]
    sizes = range(1, min(3, world.size) + 1)
    ended = {
        ranks: train_job("federated", *flags, ranks=ranks, out=str(ranks)).epochs[-1].test_loss
        for ranks in sizes
    }
    for ranks in sizes:
        assert ended[ranks] == pytest.approx(ended[1], rel=1e-5)
    out = train_job.path("", out="2")
    rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in rounds] == [1, 2, 3, 4]
    for line in rounds:
        assert [client["client"] for client in line["clients"]] == choose(4, 0.75, 1, line["round"])
        assert {client["rank"] for client in line["clients"]} <= {0, 1}
    clients = json.loads((out / "clients.json").read_text())
    assert [sum(client["classes"]) for client in clients] == [128, 127, 127, 127]
    assert (out / "clients.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--fraction", "0"], "--fraction: expected more than 0"),
        (["--proximal", "-1"], "--proximal: expected 0 or more"),
        (["--server-momentum", "1"], "--server-momentum: expected 0 to below 1"),
        (["--local-epochs", "0"], "--local-epochs: expected at least 1"),
    ],
)
def test_bad_flags(flags: list[str], text: str) -> None:
    with refused(2, text):
        config_of("federated", *flags)
