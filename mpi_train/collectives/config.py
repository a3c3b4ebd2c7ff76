"""Options of the exchange between ranks; without TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mpi_train.collectives.registry import COLLECTIVES, names
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import as_dict, at_least, flag_of, option, variant

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
    options: Any = variant(
        "collective", lambda: {name: each.options for name, each in COLLECTIVES.items() if each.options}
    )

    def __post_init__(self) -> None:
        entry = COLLECTIVES[self.collective]
        # Defaults that follow from the collective are filled in here, so that no other module has to.
        if self.average is None:
            object.__setattr__(self, "average", entry.averages[0])
        if self.every is None:
            object.__setattr__(self, "every", entry.every)
        if self.options is None and entry.options is not None:
            object.__setattr__(self, "options", entry.options())
        assert self.every is not None
        for name in ("every", "post_local_from", "accumulate"):
            at_least(flag_of(name), getattr(self, name), 1)
        collective = f"--collective {self.collective}"
        whole = "--accumulate" if self.accumulate > 1 else "--sync-batchnorm"
        refused = [
            (
                self.average not in entry.averages,
                f"--average: expected {' or '.join(entry.averages)} with {collective}. Got: {self.average}",
                "leave --average out",
            ),
            (
                self.every != 1 and not entry.local,
                f"--every: {collective} exchanges at every step. Got: --every {self.every}",
                "leave --every out",
            ),
            (
                self.every != 1 and self.average == "gradients",
                f"--every: gradients are averaged at every step. Got: --every {self.every}",
                "--average weights, or leave --every out",
            ),
            (
                entry.by_layer and (self.accumulate > 1 or self.sync_batchnorm),
                f"{collective} exchanges layers during the backward pass, which excludes {whole}. Got: both",
                f"--collective plain, or leave {whole} out",
            ),
            (
                self.post_local_from > 1 and entry.every > 1,
                f"--post-local-from: {collective} is always local. Got: {self.post_local_from}",
                "leave --post-local-from out",
            ),
            (
                self.post_local_from > 1 and self.every == 1,
                f"--post-local-from requires --every greater than 1. Got: --every {self.every}",
                "--every 8, for example",
            ),
        ]
        for wrong, message, remedy in refused:
            if wrong:
                raise UsageError(message, remedy=remedy)

    @property
    def exchange(self) -> dict[str, Any]:
        """Name and options of a collective that changes the result; empty for any other."""
        if not COLLECTIVES[self.collective].changes_result:
            return {}
        return {"collective": self.collective, **(as_dict(self.options) if self.options else {})}
