"""Options of the exchange between ranks; without TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mpi_train.collectives.registry import COLLECTIVES, Collective, names
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import as_dict, at_least, option, variant

Average = Literal["weights", "gradients", "weights+slots"]


def _described() -> str:
    speed, result = (
        "; ".join(f"{name}: {COLLECTIVES[name].text}" for name in names(changes_result=changes))
        for changes in (False, True)
    )
    return f"how ranks exchange. Same result: {speed}. Another result: {result}"


@dataclass(frozen=True, kw_only=True)
class ExchangeConfig:
    """Options of the exchange between ranks, for a config of ranks to inherit and check.

    Attributes:
        options: Options of the chosen collective, or None if it has none.
    """

    average: Average | None = option(
        None,
        "weights after an update, gradients before it, or weights and the optimizer's slots (default: "
        "weights, or gradients if --collective averages only these)",
        changes_result=True,
    )
    collective: str = option(
        "auto",
        _described,
        changes_result=lambda name: name if COLLECTIVES[name].changes_result else None,
        choices=lambda: list(COLLECTIVES),
    )
    every: int | None = option(
        None,
        "steps between two averages of weights; above 1 is local SGD (default: 1; diloco: 32)",
        changes_result=True,
    )
    post_local_from: int = option(
        1,
        "first epoch in which --every applies; before it every step is averaged (post-local SGD)",
        "EPOCH",
        changes_result=True,
    )
    accumulate: int = option(
        1,
        "micro-batches into which a rank divides its examples of a step, to save memory",
        changes_result=True,
    )
    sync_batchnorm: bool = option(
        False, "BatchNorm over the global batch, not over each rank's examples", changes_result=True
    )
    autotune: bool = option(False, "measure first which exact all-reduce is fastest; the result is the same")
    options: Any = variant(
        "collective", lambda: {name: each.options for name, each in COLLECTIVES.items() if each.options}
    )

    def __post_init__(self) -> None:
        entry = self._entry
        # Defaults that follow from the collective are filled in here, so that no other module has to.
        if self.average is None:
            object.__setattr__(self, "average", entry.averages[0])
        if self.every is None:
            object.__setattr__(self, "every", entry.every)
        if self.options is None and entry.options is not None:
            object.__setattr__(self, "options", entry.options())
        assert self.every is not None
        at_least("--every", self.every, 1)
        self._check_collective(entry)
        at_least("--post-local-from", self.post_local_from, 1)
        at_least("--accumulate", self.accumulate, 1)
        if self.post_local_from > 1 and self.every == 1:
            raise UsageError(
                f"--post-local-from requires --every greater than 1. Got: --every 1 from epoch "
                f"{self.post_local_from}",
                remedy="--every 8, for example",
            )
        if self.average == "gradients" and self.every != 1:
            raise UsageError(
                f"--every: gradients are averaged at every step. Got: --every {self.every}",
                remedy="--average weights, or leave --every out",
            )

    def _check_collective(self, entry: Collective) -> None:
        name = self.collective
        if self.average not in entry.averages:
            raise UsageError(
                f"--average: expected {' or '.join(entry.averages)} with --collective {name}. "
                f"Got: {self.average}",
                remedy="leave --average out",
            )
        if self.every != 1 and not entry.local:
            raise UsageError(
                f"--every: --collective {name} exchanges at every step. Got: --every {self.every}",
                remedy="leave --every out",
            )
        if entry.by_layer and (self.accumulate > 1 or self.sync_batchnorm):
            flag = "--accumulate" if self.accumulate > 1 else "--sync-batchnorm"
            raise UsageError(
                f"--collective {name} exchanges layers during the backward pass, which excludes {flag}. "
                f"Got: both",
                remedy=f"--collective plain, or leave {flag} out",
            )
        if entry.every > 1 and self.post_local_from > 1:
            raise UsageError(
                f"--post-local-from: --collective {name} is local from the first epoch on. "
                f"Got: {self.post_local_from}",
                remedy="leave it out",
            )
        if self.autotune and name != "auto":
            raise UsageError(
                f"--autotune chooses the collective itself. Got: --collective {name}",
                remedy="leave one of them out",
            )

    @property
    def _entry(self) -> Collective:
        return COLLECTIVES[self.collective]

    @property
    def exchange(self) -> dict[str, Any]:
        """Name and options of a collective that changes the result; empty for any other."""
        if not self._entry.changes_result:
            return {}
        return {"collective": self.collective, **(as_dict(self.options) if self.options else {})}
