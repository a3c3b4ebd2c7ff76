"""What the samples of a step's parts come to: ratios, rates, tables. No figure is made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.table import Table

from mpi_train.benchmarks.bare_all_reduce import bandwidths
from mpi_train.report.summary import Spread

GRADIENT = "gradient"
OPTIMIZER = "optimizer"
STEP = "step"
AVERAGED = "step, averaged"
ALL_REDUCE = "all-reduce"
ALONE = "step, alone"
PRODUCT = "matrix product"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """All that was measured.

    Attributes:
        world_size: Number of ranks.
        parts_s: Seconds of each part, by its name above. The k-th samples of all parts were taken one
            after another, so that ratios are made of them.
        gradient_flop: Floating-point operations of one gradient, on one rank.
        product_flop: The same of the matrix product.
        all_reduce_s: Seconds of a bare all-reduce, by its bytes; empty on one rank.
    """

    world_size: int
    parts_s: dict[str, list[float]]
    gradient_flop: int
    product_flop: int
    all_reduce_s: dict[int, list[float]] = field(default_factory=dict)

    def ratios(self) -> dict[str, list[float]]:
        """What the parts say of the loop and of the ranks, a value a sample.

        A step against its gradient and update says what the loop adds to them. The speed-up is that of weak
        scaling: examples/s of all ranks over those of one that has the machine to itself, with the same share
        of the batch; at most what it is when no rank averages, as all use the same memory. The overhead is
        what averaging adds to a step, against the bare all-reduce of the same bytes.
        """
        found = {
            f"{STEP} / {GRADIENT}": self._each(lambda step, grad: step / grad, STEP, GRADIENT),
            f"{STEP} / ({GRADIENT} + {OPTIMIZER})": self._each(
                lambda step, grad, update: step / (grad + update), STEP, GRADIENT, OPTIMIZER
            ),
        }
        if self.world_size > 1:
            size = self.world_size
            found[f"weak scaling: {size} x alone / averaged"] = self._each(
                lambda alone, averaged: size * alone / averaged, ALONE, AVERAGED
            )
            found[f"weak scaling at most: {size} x alone / {STEP}"] = self._each(
                lambda alone, step: size * alone / step, ALONE, STEP
            )
            found[f"averaging: (averaged - {STEP}) / {ALL_REDUCE}"] = self._each(
                lambda averaged, step, bare: (averaged - step) / bare, AVERAGED, STEP, ALL_REDUCE
            )
        return found

    @property
    def flop(self) -> dict[str, int]:
        """Operations of the parts that have a rate; of a step, those of the gradient in it."""
        return {PRODUCT: self.product_flop, GRADIENT: self.gradient_flop, STEP: self.gradient_flop}

    def gflop_per_s(self) -> dict[str, list[float]]:
        """The rate of one rank, a value a sample."""
        return {name: [flop / s / 1e9 for s in self.parts_s[name]] for name, flop in self.flop.items()}

    def shares(self) -> dict[str, list[float]]:
        """Those rates over that of the matrix product, a value a sample."""
        rates = self.gflop_per_s()
        return {
            name: [rate / most for rate, most in zip(values, rates[PRODUCT], strict=True)]
            for name, values in rates.items()
        }

    def _each(self, ratio: Callable[..., float], *names: str) -> list[float]:
        return [ratio(*values) for values in zip(*(self.parts_s[name] for name in names), strict=True)]


def tables(samples: Samples) -> list[Table]:
    """The figures as tables of at most 80 columns: medians, each with its smallest and largest sample."""
    found = [_times(samples), _ratios(samples), _rates(samples)]
    return [*found, _network(samples)] if samples.all_reduce_s else found


def _times(samples: Samples) -> Table:
    table = _table("Time of one, slowest rank", "µs", "min to max")
    for name, values in samples.parts_s.items():
        table.add_row(name, *_cells(values, lambda seconds: f"{seconds * 1e6:,.1f}"))
    return table


def _ratios(samples: Samples) -> Table:
    table = _table("Ratio within a sample", "median", "min to max")
    for name, values in samples.ratios().items():
        table.add_row(name, *_cells(values, lambda ratio: f"{ratio:.2f}x"))
    return table


def _rates(samples: Samples) -> Table:
    table = _table("Rate of one rank", "MFLOP", "GFLOP/s", "min to max", "share", "min to max")
    rates, shares = samples.gflop_per_s(), samples.shares()
    for name, flop in samples.flop.items():
        rate = _cells(rates[name], lambda rate: f"{rate:,.1f}")
        share = _cells(shares[name], lambda share: f"{share:.0%}")
        table.add_row(name, f"{flop / 1e6:,.1f}", *rate, *share)
    return table


def _network(samples: Samples) -> Table:
    table = _table("Bare all-reduce, bytes", "µs", "min to max", "algbw GB/s", "busbw GB/s")
    for num_bytes, values in samples.all_reduce_s.items():
        median, span = _cells(values, lambda seconds: f"{seconds * 1e6:,.1f}")
        rates = bandwidths(num_bytes, _spread(values).median, samples.world_size)
        table.add_row(f"{num_bytes:,}", median, span, *(f"{rate:.2f}" for rate in rates))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _cells(values: Sequence[float], shown: Callable[[float], str]) -> tuple[str, str]:
    spread = _spread(values)
    return shown(spread.median), f"{shown(spread.low)} to {shown(spread.high)}"


def _spread(values: Sequence[float]) -> Spread:
    spread = Spread.of(values)
    assert spread is not None
    return spread
