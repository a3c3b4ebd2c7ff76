"""The reinforcement learning example: learning, equal ranks, and one message for each user error."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mpi_train.runtime.errors import DivergedError, PlatformError, UsageError
from mpi_train.runtime.world import World

EXAMPLE = Path(__file__).parents[2] / "examples/reinforcement.py"
SMALL = {"num_envs": 5, "batch_size": 320}


@pytest.fixture(scope="module")
def example() -> ModuleType:
    pytest.importorskip("gymnasium", minversion="1.1")
    return load()


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_reinforcement", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.mpi(min_size=2)
def test_ranks_train_one_policy(example: ModuleType, world: World, tmp_path: Path) -> None:
    """Train twice with 5 environments, so that the ranks' minibatches differ in size."""
    config = example.Config(**SMALL, updates=3, out=world.gather_all(tmp_path)[0])
    first, second = (example.train(config, world) for _ in range(2))
    assert first["world_size"] == world.size
    assert world.gather_all(first["episode_rewards"]) == [second["episode_rewards"]] * world.size
    for one, other in zip(first["history"], second["history"], strict=True):
        assert one["mean_reward"] == other["mean_reward"]


@pytest.mark.mpi_skip
def test_learns_to_balance_the_pole(example: ModuleType, tmp_path: Path) -> None:
    config = example.Config(num_envs=32, batch_size=4096, updates=20, out=tmp_path)
    result = example.train(config, World())
    assert result["history"][0]["mean_reward"] < 40
    assert result["mean_reward"] > 150
    assert len(result["episode_rewards"]) == 20
    assert result["mean_reward"] == pytest.approx(np.mean(result["episode_rewards"]))
    assert json.loads((tmp_path / "reinforcement.json").read_text())["history"] == result["history"]
    assert (tmp_path / "reward.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.mpi_skip
def test_advantages_are_discounted_sums_to_the_end_of_the_episode(example: ModuleType) -> None:
    rng = np.random.default_rng(1)
    rewards, values, next_values = rng.standard_normal((3, 30, 4))
    terminated, cut = rng.random((2, 30, 4)) < 0.1
    ended = terminated | cut
    resets = np.vstack([np.zeros((1, 4), bool), ended[:-1]])
    seen = example.Experience(rewards, rewards, rewards, rewards, terminated, ended, resets)
    found = example.advantages(seen, values, next_values)
    for step, env in np.ndindex(found.shape):
        expected, weight = 0.0, float(not resets[step, env])
        for later in range(step, 30):
            future = 0 if terminated[later, env] else example.DISCOUNT * next_values[later, env]
            error = (1 - example.DISCOUNT) * rewards[later, env] + future - values[later, env]
            expected += weight * error
            weight *= example.DISCOUNT * example.GAE_DECAY * ~ended[later, env]
        assert found[step, env] == pytest.approx(expected)


@pytest.mark.mpi_skip
def test_a_learning_rate_that_is_too_large(example: ModuleType, tmp_path: Path) -> None:
    config = example.Config(**SMALL, learning_rate=1e38, out=tmp_path)
    with pytest.raises(DivergedError, match=r"update 1: weights not finite(.|\n)*a smaller --learning-rate"):
        example.train(config, World())


@pytest.mark.mpi_skip
def test_without_gymnasium_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    module = load()
    with pytest.raises(PlatformError, match=r"Gymnasium is missing\n  Fix: .*pip install gymnasium"):
        module.train(module.Config(**SMALL, out=tmp_path), World())


@pytest.mark.mpi_skip
@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"num_envs": 0}, "--num-envs: expected at least 1"),
        ({"updates": 0}, "--updates: expected at least 1"),
        ({"batch_size": 0}, "--batch-size: expected a multiple of 256"),
        ({"batch_size": 100, "num_envs": 6}, r"--batch-size: expected a multiple of 24\. Got: 100"),
        ({"learning_rate": 0.0}, "--learning-rate: expected a number above 0"),
        ({"seed": -1}, "--seed: expected at least 0"),
    ],
)
def test_bad_flags(example: ModuleType, flags: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        example.Config(**flags)


@pytest.mark.mpi_skip
def test_fewer_environments_than_ranks(example: ModuleType) -> None:
    config = example.Config(num_envs=2, batch_size=64)
    with pytest.raises(UsageError, match=r"--num-envs: expected at least 3\. Got: 2"):
        example.train(config, World(size=3, hosts=("a", "a", "a")))
