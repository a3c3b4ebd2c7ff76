"""Options of the exchange between ranks; without TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mpi_train.collectives.registry import COLLECTIVES
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import as_dict, at_least, flag_of, option, variant

Average = Literal["weights", "gradients", "weights+slots"]


def _described() -> str:
    texts: dict[bool, list[str]] = {False: [], True: []}
    for name, entry in COLLECTIVES.items():
        texts[entry.changes_result].append(f"{name}: {entry.text}")
    same, other = ("; ".join(each) for each in texts.values())
    return f"how ranks exchange. Same result: {same}. Another result: {other}"


def _needless(flag: str, reason: str, value: object) -> UsageError:
    """Return the error for a flag that is best left out."""
    return UsageError(f"{flag}: {reason}. Got: {value}", remedy=f"leave {flag} out")


@dataclass(frozen=True, kw_only=True)
class ExchangeConfig:
    """Options of the exchange between ranks, for a config of ranks to inherit and check."""

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
        options = entry.options() if entry.options else None
        for name, default in (("average", entry.averages[0]), ("every", entry.every), ("options", options)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        for name in ("every", "post_local_from", "accumulate"):
            at_least(flag_of(name), getattr(self, name), 1)
        collective = f"--collective {self.collective}"
        if self.average not in entry.averages:
            expected = f"expected {' or '.join(entry.averages)} with {collective}"
            raise _needless("--average", expected, self.average)
        if self.every != 1 and not entry.local:
            raise _needless("--every", f"{collective} exchanges at every step", f"--every {self.every}")
        if self.every != 1 and self.average == "gradients":
            raise UsageError(
                f"--every: gradients are averaged at every step. Got: --every {self.every}",
                remedy="--average weights, or leave --every out",
            )
        if entry.by_layer and (self.accumulate > 1 or self.sync_batchnorm):
            whole = "--accumulate" if self.accumulate > 1 else "--sync-batchnorm"
            raise UsageError(
                f"{collective} exchanges layers during the backward pass, which excludes {whole}. Got: both",
                remedy=f"--collective plain, or leave {whole} out",
            )
        if self.post_local_from > 1 and entry.every > 1:
            raise _needless("--post-local-from", f"{collective} is always local", self.post_local_from)
        if self.post_local_from > 1 and self.every == 1:
            raise UsageError(
                "--post-local-from requires --every greater than 1. Got: --every 1",
                remedy="--every 8, for example",
            )

    @property
    def exchange(self) -> dict[str, Any]:
        """Name and options of a collective that changes the result; empty for any other."""
        if not COLLECTIVES[self.collective].changes_result:
            return {}
        return {"collective": self.collective, **(as_dict(self.options) if self.options else {})}
