"""The command line: one source for flags and checks, and errors that say what was meant."""

from pathlib import Path

import pytest

from mpi_train.runs.config import TrainConfig
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import as_flags, parse
from mpi_train.strategies.config import BaselineConfig, DevicesConfig
from mpi_train.strategies.mpi.config import MpiConfig


def read(*words: str, kind: type[TrainConfig] = TrainConfig) -> TrainConfig:
    return parse(kind, words, description="", prog="job")


def test_defaults_are_those_of_the_seed_results() -> None:
    config = read()
    assert (config.epochs, config.batch_size, config.model, config.dataset) == (5, 64, "cnn", "fashion_mnist")
    assert config.data_dir == Path("data/fashion_mnist")


def test_flags_are_read_into_their_types() -> None:
    config = read("--batch-size", "128", "--learning-rate", "0.1", "--data", "d", "--dtype", "bfloat16")
    assert config == TrainConfig(batch_size=128, learning_rate=0.1, data=Path("d"), dtype="bfloat16")


def test_flags_round_trip() -> None:
    config = MpiConfig(epochs=2, average="weights", every=4, out=Path("r"), threads=1)
    assert parse(MpiConfig, as_flags(config), description="", prog="job") == config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epoch", "3"], "Did you mean --epochs"),
        (["--epochs", "0"], "--epochs: expected at least 1. Got: 0"),
        (["--epochs", "x"], "invalid int value: 'x'"),
        (["--batch-size", "-1"], "--batch-size: expected at least 1"),
        (["--learning-rate", "nan"], "--learning-rate: expected a number above 0"),
        (["--dtype", "float16"], "invalid choice: 'float16'"),
        (["--seed", "4294967296"], "--seed: expected 0 to"),
        (["--threads", "0"], "--threads: expected at least 1"),
        (["--checkpoint-every", "-1"], "--checkpoint-every: expected at least 0"),
        (["--checkpoint-minutes", "0"], "--checkpoint-minutes: expected more than 0"),
        (["--quiet", "--json"], "--quiet, --json: expected one of them. Got: both"),
        (["--on-nan", "ignore"], "invalid choice: 'ignore'"),
        (["stray"], "unknown argument. Got: stray"),
    ],
)
def test_bad_flags_are_usage_errors(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        read(*words)
    assert message in str(error.value)


def test_the_near_name_is_the_one_that_is_meant() -> None:
    with pytest.raises(UsageError, match=r"Did you mean --epochs\?"):
        read("--epoch", "3", kind=MpiConfig)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--accumulate", "0"], "--accumulate: expected at least 1"),
        (["--post-local-from", "3"], "--post-local-from requires --every greater than 1"),
        (["--warmup-epochs", "1"], "--warmup-epochs requires a scaled learning rate"),
        (["--warmup-epochs", "9", "--lr-scaling", "sqrt"], "--warmup-epochs: expected 0 to --epochs 5"),
        (["--average", "weights+slot"], "invalid choice"),
    ],
)
def test_ways_to_average_that_make_no_sense(flags: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        read(*flags, kind=MpiConfig)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--collective", "powersgd", "--powersgd-rank", "0"], "--powersgd-rank: expected at least 1"),
        (
            ["--collective", "topk", "--topk-fraction", "2"],
            "--topk-fraction: expected more than 0, at most 1. Got: 2",
        ),
        (["--collective", "topk", "--topk-fraction", "0"], "--topk-fraction: expected more than 0"),
        (["--average", "weights", "--collective", "topk"], "--average: expected gradients with"),
        (
            ["--collective", "diloco", "--post-local-from", "2"],
            "--collective diloco is always local",
        ),
        (
            ["--powersgd-rank", "8"],
            "--powersgd-rank applies to --collective powersgd only. Got: --collective auto",
        ),
        (["--every", "4", "--collective", "powersgd"], "--every: --collective powersgd exchanges at every"),
    ],
)
def test_collectives_of_gradients_are_of_those(flags: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        read(*flags, kind=MpiConfig)


@pytest.mark.parametrize("collective", ["bfloat16", "powersgd", "topk"])
def test_a_collective_says_what_it_averages(collective: str) -> None:
    config = read("--collective", collective, kind=MpiConfig)
    assert isinstance(config, MpiConfig)
    assert config.average == "gradients"
    assert config.exchange["collective"] == collective


@pytest.mark.parametrize(
    ("scaling", "batch", "factor"),
    [("none", 256, 1), ("linear", 256, 4), ("sqrt", 256, 2), ("linear", 64, 1)],
)
def test_the_learning_rate_grows_with_the_batch(scaling: str, batch: int, factor: float) -> None:
    config = read("--lr-scaling", scaling, "--batch-size", str(batch), kind=MpiConfig)
    assert config.rate_factor == factor


def test_gradients_are_averaged_at_every_step() -> None:
    with pytest.raises(UsageError, match="gradients are averaged at every step"):
        read("--average", "gradients", "--every", "2", kind=MpiConfig)


def test_a_rank_has_some_seconds_to_answer() -> None:
    with pytest.raises(UsageError, match=r"--stall-timeout: expected at least 5 seconds\. Got: 0\.5"):
        read("--stall-timeout", "0.5", kind=MpiConfig)


def test_a_switch_is_a_flag_without_a_value() -> None:
    config = BaselineConfig(tuned=True, epochs=2)
    assert as_flags(config) == ["--epochs", "2", "--tuned"]
    assert read("--epochs", "2", "--tuned", kind=BaselineConfig) == config
    assert as_flags(BaselineConfig()) == []


def test_devices_must_be_some() -> None:
    with pytest.raises(UsageError, match="--devices"):
        read("--devices", "0", kind=DevicesConfig)
