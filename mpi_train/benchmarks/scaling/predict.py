"""Prediction of the time of a step, and of a training, on other numbers of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mpi_train.benchmarks.config import PlanConfig
from mpi_train.benchmarks.scaling import cost_model
from mpi_train.benchmarks.scaling.calibration import Calibration, Contention, interpolated
from mpi_train.benchmarks.scaling.cost_model import ALL_REDUCES, PATTERNS, Shape, Transfer
from mpi_train.collectives.registry import COLLECTIVES
from mpi_train.runtime.errors import UsageError

ENOUGH = 0.8
"""Parallel efficiency below which more nodes are not recommended."""


class StepTime(NamedTuple):
    """Mean time of a step, and bytes that leave a node.

    A step computes, waits for the slowest rank, and moves bytes, partly hidden behind computation; ``own_s``
    is what the collective adds: packing, compression, calls.
    """

    compute_s: float
    waiting_s: float = 0.0
    moving_s: float = 0.0
    hidden_s: float = 0.0
    own_s: float = 0.0
    sent_bytes: float = 0.0

    @property
    def parts_s(self) -> dict[str, float]:
        return dict(zip(("compute", "waiting", "moving", "hidden", "own"), self[:5], strict=True))

    @property
    def total_s(self) -> float:
        return max(self.compute_s, self.compute_s + self.waiting_s + self.moving_s + self.own_s)


class Model:
    """Cost model from a calibration; the options of ``config`` replace what was measured."""

    def __init__(self, calibration: Calibration, config: PlanConfig | None = None) -> None:
        self.calibration, self.config = calibration, config or PlanConfig()
        one_machine = {"auto": calibration.one_machine, "one": True, "many": False}
        self.one_machine = one_machine[self.config.machine]
        self.network = self.config.network or calibration.uncontended.network

    def every(self, collective: str) -> int:
        """Return the number of steps between two exchanges."""
        entry = COLLECTIVES[collective]
        return self.config.every if self.config.every and entry.local else entry.every

    def changes_result(self, collective: str) -> bool:
        """Return True if training differs from that with an average at every step."""
        return COLLECTIVES[collective].changes_result or self.every(collective) > 1

    def step(self, collective: str, shape: Shape, own_batch: float) -> StepTime:
        """Predict a step with ``own_batch`` examples a rank; raises ``UsageError`` for an unknown cost."""
        low, high = self.calibration.uncontended, self.calibration.contended
        if shape.ranks == 1:
            return StepTime(interpolated(self.calibration.alone_s, own_batch))
        per_core = shape.ranks / self.calibration.cores
        if not self.one_machine or high is None or per_core <= low.ranks_per_core:
            return self._step(collective, shape, own_batch, low)
        if per_core >= high.ranks_per_core:
            return self._step(collective, shape, own_batch, high, per_core / high.ranks_per_core)
        share = (per_core - low.ranks_per_core) / (high.ranks_per_core - low.ranks_per_core)
        both = (self._step(collective, shape, own_batch, each) for each in (low, high))
        return StepTime(*((1 - share) * fast + share * slow for fast, slow in zip(*both, strict=True)))

    def _step(
        self, collective: str, shape: Shape, own_batch: float, measured: Contention, factor: float = 1
    ) -> StepTime:
        """Predict a step with ``factor`` times as many ranks per core as ``measured``."""
        step = self._exchanging(collective, shape, own_batch, measured, factor, planned=True)
        reference = collective if collective in measured.step_s else "plain"
        if reference not in measured.step_s:
            return step
        # What the measured step of two ranks took beyond the model of it, on the measured network.
        half = self.calibration.step["batch_size"] / 2
        of_two = self._exchanging(reference, Shape(2), half, measured, 1, planned=False)
        own_s = (measured.step_s[reference] - of_two.total_s) / self.every(collective) * factor
        return step._replace(own_s=own_s)

    def _exchanging(
        self, name: str, shape: Shape, own_batch: float, measured: Contention, factor: float, *, planned: bool
    ) -> StepTime:
        """Predict a step without ``own_s``, as ``planned`` or as measured: at every step."""
        compute_s = interpolated(measured.compute_s, own_batch) * factor
        every, given = (self.every(name), self.config.network) if planned else (1, None)
        if (cost := COLLECTIVES[name].cost) not in PATTERNS:
            raise UsageError(
                f"collective {name}: expected a cost of {', '.join(PATTERNS)}. Got: {cost}",
                remedy="add it to benchmarks/scaling/cost_model.py, or name another one in the registry",
            )
        pattern, network = PATTERNS[cost], given or measured.network
        payload = self.calibration.payload.get(name, self.calibration.model_bytes)
        if pattern.formula is not None:
            transfer = pattern.formula(payload, shape)
        else:
            count = pattern.num_messages or self.calibration.num_buckets
            one_each = (formula(payload / count, shape) for formula in ALL_REDUCES.values())
            found = [Transfer(*(count * each for each in one)) for one in one_each]
            transfer = min(found, key=lambda each: network.after_pause(each, 0))
        # Traffic within a node is assumed to be as fast as between nodes, because only that was measured.
        within = Transfer(transfer.rounds_within, transfer.bytes_within)
        moves = ((transfer, compute_s), (within, 0.0))
        if given:
            moving_s = sum(given.after_pause(*each) for each in moves) / every
        else:
            moving_s = sum(self._measured_s(*each, measured, factor) for each in moves) / every
        hidden_s = min(moving_s, pattern.overlap * compute_s)
        relative_s = self.calibration.relative_s
        slowest = cost_model.expected_maximum(relative_s, shape.ranks) / (sum(relative_s) / len(relative_s))
        # Over several steps, random delays even out with their square root.
        waiting_s = compute_s * (slowest - 1) / every**0.5
        sent_bytes = transfer.num_bytes / every
        return StepTime(compute_s, waiting_s, moving_s - hidden_s, hidden_s, sent_bytes=sent_bytes)

    def _measured_s(self, transfer: Transfer, pause_s: float, measured: Contention, factor: float) -> float:
        """Do the same as ``Network.after_pause``, by interpolation of the measured all-reduces."""
        if not transfer.rounds:
            return 0.0
        network = measured.network
        # A transfer that is limited by the core takes longer if more ranks share the core.
        fastest = self.calibration.uncontended.network.seconds_per_byte
        slowdown = factor if network.seconds_per_byte > 1.25 * fastest else 1
        moving_s = interpolated(measured.all_reduce_s, transfer.num_bytes) * slowdown
        latencies_s = (transfer.rounds - 1) * network.latency_s * factor
        return max(0.0, moving_s - network.saved_s(pause_s)) + latencies_s


@dataclass(frozen=True)
class Training:
    """Training on one number of ranks with a global ``batch_size``; ``train_s`` is the time of all steps.

    Parallel efficiency is the time of one rank for as many examples, over the ranks times their time.
    """

    collective: str
    shape: Shape
    batch_size: int
    step: StepTime
    train_s: float
    efficiency: float

    @property
    def node_hours(self) -> float:
        return self.train_s * self.shape.nodes / 3600


Trainings = Mapping[str, Sequence[Training]]
"""Trainings by collective, in ascending order of the nodes."""


def trainings(model: Model) -> Trainings:
    """Predict trainings with each collective on powers of two of nodes, as far as the batch allows.

    With ``--weak``, the batch of the calibration is that of each rank; else it is the global batch.
    """
    config, batch_size = model.config, model.calibration.step["batch_size"]
    per_node = config.ranks_per_node
    powers = range((config.max_ranks // per_node).bit_length())
    shapes = dict.fromkeys([Shape(1), *(Shape(2**power, per_node) for power in powers)])
    alone_s = model.step("auto", Shape(1), batch_size).total_s / batch_size

    def training(collective: str, shape: Shape) -> Training:
        batch = batch_size * (shape.ranks if config.weak else 1)
        step = model.step(collective, shape, batch / shape.ranks)
        train_s = config.epochs * -(-config.examples // batch) * step.total_s
        efficiency = alone_s * batch / (shape.ranks * step.total_s)
        return Training(collective, shape, batch, step, train_s, efficiency)

    fitting = [shape for shape in shapes if config.weak or shape.ranks <= batch_size]
    return {name: [training(name, shape) for shape in fitting] for name in COLLECTIVES}


class Advice(NamedTuple):
    """Recommended trainings, and the number of nodes at which the efficient one falls below ``ENOUGH``."""

    fastest: Training
    cheapest: Training
    efficient: Training
    falls_at: int | None


def advise(found: Trainings, collectives: Iterable[str]) -> Advice:
    """Recommend trainings with one of ``collectives``."""
    lines = [found[name] for name in collectives]
    rows = [row for line in lines for row in line]
    best: list[tuple[Training, int | None]] = []
    for line in lines:
        falls = next((n for n, row in enumerate(line) if n and row.efficiency < ENOUGH), len(line))
        best.append((line[falls - 1], line[falls].shape.nodes if falls < len(line) else None))
    return Advice(
        min(rows, key=lambda row: row.train_s),
        min(rows, key=lambda row: (round(row.node_hours, 9), row.train_s)),
        *min(best, key=lambda pair: pair[0].train_s),
    )
