"""A collective is its module and one entry of the registry: all else follows from these."""

from dataclasses import dataclass
from pkgutil import resolve_name

import pytest

from mpi_train.collectives.config import ExchangeConfig
from mpi_train.collectives.registry import COLLECTIVES, Collective, TopKOptions
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import as_flags, identity, option, parse


@dataclass(frozen=True, kw_only=True)
class SmokeOptions:
    puffs: int = option(2, "puffs a message")


def read(*words: str) -> ExchangeConfig:
    return parse(ExchangeConfig, words, description="", prog="job")


@pytest.mark.parametrize("name", COLLECTIVES)
def test_the_modules_of_an_entry_exist(name: str) -> None:
    entry = COLLECTIVES[name]
    assert callable(resolve_name(entry.factory))
    assert callable(resolve_name(entry.all_reduce))
    assert read("--collective", name).average == entry.averages[0]


def test_a_new_entry_is_a_choice_with_options_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COLLECTIVES, "smoke", Collective(text="smoke signals", options=SmokeOptions))
    assert read("--collective", "smoke", "--puffs", "3").options == SmokeOptions(puffs=3)
    with pytest.raises(SystemExit):
        read("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "smoke: smoke signals" in text
    assert "options of --collective smoke" in text


def test_options_are_those_of_the_chosen_collective() -> None:
    config = read("--collective", "topk")
    assert config.options == TopKOptions()
    assert config.exchange == {"collective": "topk", "topk_fraction": 0.03}
    assert as_flags(read("--collective", "topk", "--topk-fraction", "0.1")) == [
        "--average", "gradients", "--collective", "topk", "--topk-fraction", "0.1"
    ]  # fmt: skip
    with pytest.raises(UsageError, match="--topk-fraction applies to --collective topk only"):
        read("--topk-fraction", "0.1", "--collective", "plain")
    with pytest.raises(UsageError, match=r"expected --topk-fraction\. Got: --topk-part, its old name"):
        read("--topk-part", "0.1", "--collective", "topk")


def test_only_what_changes_the_result_identifies_a_run() -> None:
    assert identity(read("--collective", "hierarchical")) == identity(read())
    assert identity(read("--collective", "topk")) != identity(read("--average", "gradients"))
