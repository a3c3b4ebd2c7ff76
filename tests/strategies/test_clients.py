"""Who the clients are, who takes part in a round, and what their data is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mpi_train.data.shards import ShardSet
from mpi_train.runtime.errors import UsageError
from mpi_train.strategies.federated.clients import choose, clients_of
from tests.programs import assert_one_message, start

pytestmark = pytest.mark.mpi_skip


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


@pytest.mark.timeout(240)
def test_the_same_model_on_any_number_of_ranks_and_a_log_of_its_rounds(
    tiny_shards: Path, tmp_path: Path
) -> None:
    ended = {}
    for ranks in (1, 2, 3):
        result = start(
            "federated", "--dataset", "synthetic", "--data", tiny_shards, "--model", "mlp", "--epochs", "4",
            "--fraction", "0.75", "--batch-size", "12", "--out", tmp_path / str(ranks), ranks=ranks,
        )  # fmt: skip
        assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
        ended[ranks] = json.loads((tmp_path / str(ranks) / "run.json").read_text())["epochs"][-1]["test_loss"]
    assert ended[2] == pytest.approx(ended[1], rel=1e-5)
    assert ended[3] == pytest.approx(ended[1], rel=1e-5)
    rounds = [json.loads(line) for line in (tmp_path / "2/rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in rounds] == [1, 2, 3, 4]
    for line in rounds:
        assert [client["client"] for client in line["clients"]] == choose(4, 0.75, 1, line["round"])
        assert {client["rank"] for client in line["clients"]} <= {0, 1}
    clients = json.loads((tmp_path / "2/clients.json").read_text())
    assert [sum(client["classes"]) for client in clients] == [128, 127, 127, 127]
    assert (tmp_path / "2/clients.png").read_bytes().startswith(b"\x89PNG")


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
    assert_one_message(start("federated", *flags), 2, text)
