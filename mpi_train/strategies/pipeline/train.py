"""Pipeline parallelism: each rank has a stage of the model, and micro-batches flow through the stages.

A rank holds only the weights of its stage. It sends activations to the next rank and gradients to the
previous one, point to point. Further ranks form replicas of the pipeline, among which the data is divided;
ranks with the same stage average their gradients. The arithmetic is that of one process, except for
BatchNorm, which normalises each micro-batch, and dropout, which draws for each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mpi_train.collectives.averaging import Averaging, Gradients, NoAveraging
from mpi_train.collectives.exchange_log import Traffic
from mpi_train.collectives.hierarchical import mean_all_reduce
from mpi_train.data.examples import Examples
from mpi_train.models import zoo
from mpi_train.models.flat import FlatModel
from mpi_train.monitor import timeline
from mpi_train.runs.checkpoints import Arrays, work_of
from mpi_train.runs.record import RunRecord
from mpi_train.runs.run import Run
from mpi_train.runtime import devices
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.files import digest
from mpi_train.runtime.world import World
from mpi_train.strategies import custom_loop
from mpi_train.strategies.pipeline import partition
from mpi_train.strategies.pipeline.config import PipelineConfig
from mpi_train.strategies.pipeline.link import Link
from mpi_train.strategies.pipeline.schedule import bubble, in_flight, one_forward_one_backward
from mpi_train.training import evaluation
from mpi_train.training.evaluation import Evaluator
from mpi_train.training.loop import RunSteps
from mpi_train.training.losses import as_input, losses_of, num_correct
from mpi_train.training.replicas import offset_seeds_by_rank, start_equal
from mpi_train.training.steps import Steps
from mpi_train.training.trainer import Batch, Trainer, mean_states


def train(config: PipelineConfig, world: World, threads: int) -> RunRecord:
    """Train the stages of all ranks and write the record."""
    run = Run("pipeline", config, world, threads)
    asked = [] if config.cut is None else [name.strip() for name in config.cut.split(",")]
    # Every rank builds the whole model in host memory, for the same initial weights.
    with world.together(), tf.device("/CPU:0"):
        device = devices.own_device(world)
        whole, optimizer = custom_loop.build(run)
        pieces = partition.blocks_of(whole)
        num_asked = config.stages or (len(asked) + 1 if asked else None)
        num_stages = partition.num_stages(pieces, num_asked, world.size)
        num_parts = world.size // num_stages * config.micro_batches
        if config.batch_size < num_parts:
            raise UsageError(
                f"--batch-size is the global batch: expected at least one example for each of the "
                f"{num_parts} micro-batches of a step. Got: {config.batch_size}",
                remedy="fewer --micro-batches, or a larger --batch-size",
            )
        # Both check that the cuts are possible, before anything is timed.
        starts = (
            partition.cut_after(pieces, asked, num_stages)
            if asked
            else partition.balanced(pieces, [1.0] * len(pieces), num_stages)
        )
    if not asked:
        starts = world.gather_all(_measured(run, pieces, num_stages) if world.is_root else [])[0]
    cut = [pieces[start - 1].name for start in starts]
    run.lap("build")
    # Neighbouring ranks are neighbouring stages, because those exchange the most.
    copy, number = divmod(world.rank, num_stages)
    pipe, peers = world.split(copy), world.split(number)
    run.replicas = peers
    examples, test_examples = run.read("train"), run.read("test")
    if number > 0:
        # The input comes from another stage.
        examples, test_examples = (
            replace(each, images=np.empty((len(each), 0), np.uint8)) for each in (examples, test_examples)
        )
    with world.together(), tf.device("/CPU:0"):
        model = partition.stage_of(pieces, starts, number)
    name, num_weights = whole.name, whole.count_params()
    del whole, pieces
    flat = FlatModel(model, device)
    links = _links(pipe, flat, config, copies=peers.size)
    over_peers = Gradients(mean_all_reduce(peers, flat.num_padded)) if peers.size > 1 else NoAveraging()
    exchange = _Exchange(over_peers, peers, pipe, links)
    trainer = _StageTrainer(flat, optimizer, examples, exchange, [device] * config.micro_batches)
    evaluator = Evaluator(
        lambda images: _predict(flat, links, images, run.num_classes),
        test_examples,
        from_logits=not zoo.returns_probabilities(model),
    )
    start_equal(peers, trainer.variables)
    offset_seeds_by_rank(world, flat.states)
    layout = {"stages": num_stages, "copies": peers.size, "micro_batches": config.micro_batches}
    run.progress.say(
        f"pipeline: {num_stages} stage{'s' if num_stages > 1 else ''} in {peers.size} "
        f"cop{'ies' if peers.size > 1 else 'y'}, cut after {', '.join(cut) or 'nothing'}"
    )

    def details() -> dict[str, Any]:
        times = [rank for epoch in run.epochs for rank in epoch.by_rank]
        return {
            "cut": cut,
            "stage_weights": world.gather_all(model.count_params())[:num_stages],
            # Fraction of the training time in which ranks waited for others.
            "bubble": sum(rank.waiting_s for rank in times) / sum(sum(rank.parts_s) for rank in times),
            "bubble_in_theory": bubble(num_stages, config.micro_batches),
        }

    record = custom_loop.fit(
        run,
        trainer,
        evaluator,
        state=_StageState(trainer),
        # All stages work on the same examples, which count once.
        scores=lambda scores: scores if links.after is None else scores.none(),
        model=(name, num_weights),
        # A checkpoint holds the weights of each rank's stage.
        layout={**layout, "cut": cut},
        sync={"average": "gradients", "every": 1, **layout, **({"cut": asked} if asked else {})},
        details=details,
        weights_sha256=lambda: digest(_all_weights(flat, pipe)),
    )
    run.progress.say(
        f"pipeline: ranks waited {record.details['bubble']:.0%} of the time; with equally fast stages it "
        f"would be {record.details['bubble_in_theory']:.0%} ({config.micro_batches} micro-batches)"
    )
    return record


@dataclass(frozen=True)
class _Links:
    """Links to the previous and to the next stage, if they exist."""

    before: Link | None
    after: Link | None

    def __iter__(self) -> Iterator[Link]:
        return (link for link in (self.before, self.after) if link is not None)


def _measured(run: Run, pieces: Sequence[partition.Block], num_stages: int) -> list[int]:
    """Return the first blocks of stages of equal time, or those of the run that is resumed."""
    config = run.config
    assert isinstance(config, PipelineConfig)
    # A second measurement may differ, and the checkpoint would no longer fit.
    resumes = not (run.is_finished and config.resume == "auto")
    before = work_of(run.out, config.resume) if resumes else {}
    if (before.get("model"), before.get("stages")) == (config.model, num_stages):
        names = [piece.name for piece in pieces]
        return [names.index(name) + 1 for name in before["cut"]]
    size = -(-config.batch_size * num_stages // (run.world.size * config.micro_batches))
    with tf.device("/CPU:0"):
        return partition.balanced(pieces, partition.costs_of(pieces, size), num_stages)


def _links(pipe: World, flat: FlatModel, config: PipelineConfig, *, copies: int) -> _Links:
    largest = max(evaluation.BATCH, -(-config.batch_size // (copies * config.micro_batches)))
    depth = in_flight(pipe.rank, pipe.size, config.micro_batches)

    def link(neighbour: int, tensor: keras.KerasTensor, receive_depth: int, send_depth: int) -> Link | None:
        if not 0 <= neighbour < pipe.size:
            return None
        return Link(
            pipe, neighbour, tensor, capacity=largest, receive_depth=receive_depth, send_depth=send_depth
        )

    return _Links(
        before=link(pipe.rank - 1, flat.model.inputs[0], receive_depth=depth, send_depth=2),
        after=link(pipe.rank + 1, flat.model.outputs[0], receive_depth=1, send_depth=depth + 1),
    )


class _StageTrainer(Trainer):
    """Trainer of one stage. The parts of a step, one for each of ``devices``, are its micro-batches."""

    def __init__(
        self,
        flat: FlatModel,
        optimizer: keras.Optimizer,
        examples: Examples,
        exchange: _Exchange,
        devices: Sequence[str],
    ) -> None:
        super().__init__(flat, optimizer, examples, averaging=exchange, devices=devices)
        self._exchange, self._links = exchange, exchange.links
        self._schedule = one_forward_one_backward(exchange.pipe.rank, exchange.pipe.size, len(devices))

    def prepare(self, order: np.ndarray, steps: Steps) -> RunSteps:
        run = super().prepare(order, steps)

        def run_and_wait(first: int, stop: int) -> tuple[float, float, int]:
            loss, correct, count = run(first, stop)
            self._exchange.wait()
            # All stages work on the same examples. The last one knows their loss and counts them.
            return loss, correct, count if self._links.after is None else 0

        return run_and_wait

    def gradient(self, batches: Sequence[Batch]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        before, after = self._links.before, self._links.after
        pieces = self.flat.slices(tf.identity(self.flat.weights.value))
        states = first = [tf.identity(state) for state in self.flat.states]
        parts: list[list[tf.Tensor]] = []
        loss, correct, gradient = tf.constant(0.0), tf.constant(0.0), tf.zeros(self.flat.num_padded)
        kept: dict[int, tuple[tf.GradientTape, list[tf.Tensor], tf.Tensor]] = {}
        done: list[tf.Tensor] = []
        for direction, part in self._schedule:
            images, labels, scale = batches[part]
            count, known = tf.shape(labels)[0], labels.shape[0]
            # One pass after another: kernels that start early would need memory early.
            with tf.control_dependencies(done):
                if direction == "forward":
                    inputs = as_input(images) if before is None else before.receive(count, known)
                    sources = pieces if before is None else [*pieces, inputs]
                    with tf.GradientTape(watch_accessed_variables=False) as tape:
                        tape.watch(sources)
                        # BatchNorm's statistics continue from the start of the step, seeds from the part
                        # before.
                        states = [a if a.dtype.is_floating else b for a, b in zip(first, states, strict=True)]
                        outputs, states = self.flat.call(pieces, states, inputs, training=True)
                        parts.append(states)
                        if after is None:
                            labels = tf.cast(labels, tf.int32)
                            right = num_correct(outputs, labels)
                            outputs = tf.reduce_sum(losses_of(outputs, labels, from_logits=self._from_logits))
                            loss, correct = loss + tf.sign(scale) * outputs, correct + tf.sign(scale) * right
                    if after is not None:
                        after.send(outputs)
                    kept[part] = tape, sources, outputs
                    done = [outputs]
                else:
                    tape, sources, outputs = kept.pop(part)
                    upstream = scale if after is None else after.receive(count, known)
                    gradients = tape.gradient(
                        outputs, sources, output_gradients=upstream, unconnected_gradients="zero"
                    )
                    if before is not None:
                        before.send(gradients.pop())
                    gradient += self.flat.concat(gradients)
                    done = [gradient]
        for variable, state in zip(self.flat.states, mean_states(parts), strict=True):
            variable.assign(state)
        return loss, correct, gradient


class _Exchange(Averaging):
    """Averaging of a stage's gradients over its replicas, with the traffic of the links.

    Args:
        over_peers, peers: Averaging over the ranks with the same stage, and these ranks.
        pipe: Ranks of this replica of the pipeline, in the order of their stages.
        links: Links to the neighbouring stages.
    """

    def __init__(self, over_peers: Averaging, peers: World, pipe: World, links: _Links) -> None:
        self._over_peers, self._peers, self.pipe, self.links = over_peers, peers, pipe, links
        self._idle_s = self._all_idle_s = 0.0

    def wait(self) -> None:
        """Wait for the other stages between two chunks of steps."""
        start = time.perf_counter()
        with timeline.phase("wait"):
            self.pipe.barrier()
        seconds = time.perf_counter() - start
        self._idle_s += seconds
        self._all_idle_s += seconds

    def gradient(self, gradient: tf.Tensor) -> tf.Tensor:
        return self._over_peers.gradient(gradient)

    def take_traffic(self, world: World) -> Traffic:
        idle_s, self._idle_s = self._idle_s, 0.0
        own = (link.take_traffic() for link in self.links)
        return sum(own, self._over_peers.take_traffic(self._peers)) + Traffic(waiting_s=idle_s)

    def exchange_s(self) -> float:
        over_peers_s = self._over_peers.exchange_s() if self._peers.size > 1 else 0.0
        return sum(link.log.total_s for link in self.links) + over_peers_s + self._all_idle_s


def _predict(flat: FlatModel, links: _Links, images: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Run a batch through this stage; the result is zeros on all stages but the last."""
    count = tf.shape(images)[0]
    outputs = flat.predict(images if links.before is None else links.before.receive(count, None))
    if links.after is None:
        return outputs
    links.after.send(outputs)
    return tf.zeros([count, num_classes])


def _all_weights(flat: FlatModel, pipe: World) -> Iterator[np.ndarray]:
    """Yield the weights of the whole model in layer order, stage by stage, on the root of the pipe only."""
    own = [weight.numpy() for weight in flat.export().weights]
    if not pipe.is_root:
        pipe.send_object(own, to=0)
        return
    yield from own
    for stage in range(1, pipe.size):
        yield from pipe.receive_object(source=stage)


class _StageState:
    """Variables of a stage for a checkpoint, concatenated, so that all ranks have the same names."""

    def __init__(self, trainer: Trainer) -> None:
        self.slow_down = trainer.update.slow_down
        flat = trainer.flat
        self._rows: dict[str, list[tf.Variable]] = {
            "weights": [flat.weights.value],
            "statistics": flat.moving_statistics,
            "seeds": [state for state in flat.states if not state.dtype.is_floating],
            "slots": [v for v in trainer.update.variables if v.dtype.is_floating],
            "counts": [v for v in trainer.update.variables if not v.dtype.is_floating],
        }

    def arrays(self) -> Arrays:
        return {
            name: np.concatenate([np.ravel(v.numpy()) for v in row] or [np.zeros(0, np.float32)])
            for name, row in self._rows.items()
        }

    def restore(self, arrays: Arrays, *, same_size: bool) -> None:
        for name, row in self._rows.items():
            ends = np.cumsum([variable.shape.num_elements() for variable in row])
            for variable, array in zip(row, np.split(arrays[name], ends[:-1]), strict=False):
                variable.assign(array.reshape(variable.shape))
