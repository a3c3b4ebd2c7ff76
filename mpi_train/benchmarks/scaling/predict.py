"""How long a step, and a training, would take on other numbers of ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mpi_train.benchmarks.scaling.calibration import Calibration, Crowd, interpolated
from mpi_train.benchmarks.scaling.cost_model import (
    ALL_REDUCES,
    Moved,
    Network,
    Shape,
    all_gather,
    expected_maximum,
    hierarchical,
    neighbour,
    parts,
)
from mpi_train.collectives.registry import COLLECTIVES

# What a way does that is not an all-reduce as MPI chooses it.
_PATTERNS: dict[str, Callable[[float, Shape], Moved]] = {
    "hierarchical": hierarchical,
    "bfloat16": parts,
    "topk": all_gather,
    "gossip": neighbour,
}
# The part of a step's computing behind which a way hides what it moves: all of the next step; or the
# backward pass, two thirds of a step, of which the last layer's gradient comes at the start.
_HIDES = {"delayed": 1.0, "buckets": 0.6}


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """One step, on average, of one number of ranks.

    Attributes:
        compute_s: Batches, gradients, updates.
        waiting_s: For the slowest rank.
        moving_s: While bytes move and nothing else is done.
        hidden_s: While bytes move behind computing.
        own_s: What the way of exchanging adds of its own: packing, compressing, calls.
        sent_bytes: What leaves a node.
    """

    compute_s: float
    waiting_s: float = 0.0
    moving_s: float = 0.0
    hidden_s: float = 0.0
    own_s: float = 0.0
    sent_bytes: float = 0.0

    @property
    def total_s(self) -> float:
        return max(self.compute_s, self.compute_s + self.waiting_s + self.moving_s + self.own_s)


class Model:
    """The model of cost that a calibration gives.

    Args:
        calibration: What was measured.
        network: Between nodes, in place of the measured one.
        one_machine: Whether all ranks share the cores of one machine; as measured where None.
        every: Steps between two exchanges, of ways that can be local.
    """

    def __init__(
        self,
        calibration: Calibration,
        *,
        network: Network | None = None,
        one_machine: bool | None = None,
        every: int | None = None,
    ) -> None:
        self.calibration = calibration
        self.one_machine = calibration.one_machine if one_machine is None else one_machine
        self._given, self._every = network, every
        assert network is not None or calibration.roomy is not None

    @property
    def network(self) -> Network:
        """Between nodes, when nothing is crowded."""
        if self._given is not None:
            return self._given
        assert self.calibration.roomy is not None
        return self.calibration.roomy.network

    def ways(self) -> list[str]:
        """What can be predicted."""
        return list(COLLECTIVES)

    def step(self, way: str, shape: Shape, own_batch: float) -> StepTime:
        """A step of ``shape``, each rank with ``own_batch`` examples, on average."""
        if shape.ranks == 1:
            return StepTime(compute_s=interpolated(self.calibration.alone_s, own_batch))
        return self._blend(shape, lambda crowd, factor: self._step(way, shape, own_batch, crowd, factor))

    def all_reduce_s(self, algorithm: str, num_bytes: float, shape: Shape) -> float:
        """One all-reduce by ``algorithm``, without a pause before it, between nodes that are not crowded."""
        return self.network.after_pause(ALL_REDUCES[algorithm](num_bytes, shape), 0)

    def exchange(self, way: str, shape: Shape, network: Network) -> Moved:
        """What one exchange moves; of the all-reduces that MPI chooses from, the fastest."""
        payload = self.calibration.payload.get(way, self.calibration.model_bytes)
        if way in _PATTERNS:
            return _PATTERNS[way](payload, shape)
        pieces = {"buckets": self.calibration.num_buckets, "powersgd": 2}.get(way, 1)
        moved = [algorithm(payload / pieces, shape).times(pieces) for algorithm in ALL_REDUCES.values()]
        return min(moved, key=lambda each: network.after_pause(each, 0))

    def every(self, way: str) -> int:
        """Steps between two exchanges."""
        return self._every if self._every and COLLECTIVES[way].local else COLLECTIVES[way].every

    def changes_result(self, way: str) -> bool:
        """Whether training takes another course than with an average of every step."""
        return COLLECTIVES[way].changes_result or self.every(way) > 1

    def _blend(self, shape: Shape, step: Callable[[Crowd | None, float], StepTime]) -> StepTime:
        calibration = self.calibration
        roomy, crowded = calibration.roomy, calibration.crowded
        ranks_per_core = shape.ranks / calibration.cores
        if not self.one_machine or crowded is None or roomy is None or ranks_per_core <= roomy.ranks_per_core:
            return step(roomy, 1)
        if ranks_per_core >= crowded.ranks_per_core:
            return step(crowded, ranks_per_core / crowded.ranks_per_core)
        share = (ranks_per_core - roomy.ranks_per_core) / (crowded.ranks_per_core - roomy.ranks_per_core)
        low, high = step(roomy, 1), step(crowded, 1)
        return StepTime(
            **{
                name: (1 - share) * getattr(low, name) + share * getattr(high, name)
                for name in StepTime.__dataclass_fields__
            }
        )

    def _step(self, way: str, shape: Shape, own_batch: float, crowd: Crowd | None, factor: float) -> StepTime:
        calibration = self.calibration
        bare = self._bare(way, shape, own_batch, crowd, factor)
        if crowd is None:
            return bare
        # What the measured step of two ranks took beyond what the model says of it.
        batch = calibration.step["batch_size"] / 2
        reference = "plain" if way not in crowd.step_s else way
        if reference not in crowd.step_s:
            return bare
        of_two = self._bare(reference, Shape(2), batch, crowd, 1, as_measured=True)
        own_s = (crowd.step_s[reference] - of_two.total_s) / self.every(way)
        fields = {name: getattr(bare, name) for name in StepTime.__dataclass_fields__}
        return StepTime(**{**fields, "own_s": own_s * factor})

    def _bare(
        self,
        way: str,
        shape: Shape,
        own_batch: float,
        crowd: Crowd | None,
        factor: float,
        as_measured: bool = False,
    ) -> StepTime:
        """Without what the way adds.

        ``factor`` times as many ranks share a core as in ``crowd``. ``as_measured``: on the network on which
        that was, with an exchange at every step.
        """
        times = crowd.compute_s if crowd is not None else self.calibration.alone_s
        compute_s = interpolated(times, own_batch) * factor
        network = self._given
        moving: Callable[[Moved, float], float] | None = network.after_pause if network is not None else None
        if crowd is not None and (network is None or as_measured):
            network, moving = crowd.network, self._measured(crowd, factor)
        assert network is not None
        assert moving is not None
        every = 1 if as_measured else self.every(way)
        moved = self.exchange(way, shape, network)
        # Within a node bytes move as they do between nodes, where nothing else was measured.
        within = Moved(moved.rounds_within, moved.bytes_within)
        within_s = moving(within, 0) if within.rounds else 0.0
        moving_s = (moving(moved, compute_s) + within_s) / every
        hidden_s = min(moving_s, _HIDES.get(way, 0.0) * compute_s)
        scatter = self._slowest(shape.ranks)
        return StepTime(
            compute_s=compute_s,
            # Over several steps what is slow by chance evens out, as its root.
            waiting_s=compute_s * (scatter - 1) / every**0.5,
            moving_s=moving_s - hidden_s,
            hidden_s=hidden_s,
            sent_bytes=moved.num_bytes / every,
        )

    def _measured(self, crowd: Crowd, factor: float) -> Callable[[Moved, float], float]:
        """As ``Network.after_pause``, by the times that were measured at the numbers of bytes around it."""
        roomy, network = self.calibration.roomy, crowd.network
        assert roomy is not None
        # What takes a core takes longer where more ranks share it; what takes the wire does not.
        takes_core = network.seconds_per_byte > 1.25 * roomy.network.seconds_per_byte
        slower = factor if takes_core else 1.0

        def seconds(moved: Moved, pause_s: float) -> float:
            if not moved.rounds:
                return 0.0
            saved_s = min(network.burst_bytes * network.seconds_per_byte, pause_s)
            moving_s = max(0.0, interpolated(crowd.all_reduce_s, moved.num_bytes) * slower - saved_s)
            return moving_s + (moved.rounds - 1) * network.latency_s * factor

        return seconds

    def _slowest(self, count: int) -> float:
        """What the slowest of ``count`` ranks takes of a step, over what one takes on average."""
        samples = self.calibration.relative_s
        return expected_maximum(samples, count) / (sum(samples) / len(samples))


@dataclass(frozen=True, kw_only=True)
class Training:
    """A whole training on one number of ranks.

    Attributes:
        way: How ranks exchange.
        shape: The ranks.
        batch_size: Global.
        step: One step of it.
        train_s: All steps; without start-up and evaluation.
        efficiency: Of the ranks: what one rank takes for as many examples, over their number times this.
    """

    way: str
    shape: Shape
    batch_size: int
    step: StepTime
    train_s: float
    efficiency: float

    @property
    def node_hours(self) -> float:
        return self.train_s * self.shape.nodes / 3600


def trainings(
    model: Model, *, epochs: int, num_examples: int, max_ranks: int, per_node: int, weak: bool
) -> Mapping[str, list[Training]]:
    """For each way, the trainings on powers of two of nodes, as far as the batch goes round.

    Args:
        model: The model of cost.
        epochs, num_examples: How much is trained, and the examples of an epoch.
        max_ranks: At most.
        per_node: Ranks of a node.
        weak: Whether the batch of the calibration is that of a rank; else it is the global one.
    """
    batch_size = model.calibration.step["batch_size"]
    shapes, nodes = [Shape(1)], 1
    while nodes * per_node <= max_ranks:
        shapes.append(Shape(nodes, per_node))
        nodes *= 2
    shapes = [shape for shape in dict.fromkeys(shapes) if weak or shape.ranks <= batch_size]
    alone_s = model.step("auto", Shape(1), batch_size).total_s / batch_size

    def training(way: str, shape: Shape) -> Training:
        batch = batch_size * (shape.ranks if weak else 1)
        step = model.step(way, shape, batch / shape.ranks)
        num_steps = -(-num_examples // batch)
        return Training(
            way=way,
            shape=shape,
            batch_size=batch,
            step=step,
            train_s=epochs * num_steps * step.total_s,
            efficiency=alone_s * batch / (shape.ranks * step.total_s),
        )

    return {way: [training(way, shape) for shape in shapes] for way in model.ways()}
