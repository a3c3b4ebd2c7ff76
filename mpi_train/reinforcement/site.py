"""One rank's part of the learning: it plays its environments, and improves the policy with the other ranks.

Each rank does proximal policy optimisation as if it were alone; but the gradient of every minibatch is
averaged over the ranks, and the advantages are standardised over all. What is left to chance is drawn by
environment: on any number of ranks the same is played and learnt, but for rounding.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from mpi_train.collectives.averaging import Gradients, Nothing
from mpi_train.collectives.build import mean_all_reduce
from mpi_train.data.shards import balanced_range
from mpi_train.models import optimizers
from mpi_train.models.flat import FlatModel
from mpi_train.monitor import timeline
from mpi_train.reinforcement import advantages, policy
from mpi_train.reinforcement.environments import MAX_STEPS, Environments, Experience, first_returns
from mpi_train.reinforcement.learner import NUM_PASSES, Learner, Lesson
from mpi_train.reinforcement.record import UpdateRecord
from mpi_train.runs.config import NUM_MINIBATCHES, ReinforcementConfig
from mpi_train.runs.coordinator import Control
from mpi_train.runtime import watchdog
from mpi_train.runtime.errors import DivergedError
from mpi_train.runtime.world import World
from mpi_train.training.replicas import check_equal, start_equal

DISCOUNT, DECAY = 0.99, 0.99
NUM_EVALUATED = 20
"""Episodes of the evaluation."""
_STREAM = 0xAC7
"""Keeps what is drawn while playing and learning apart from what else is drawn from the same seed."""


class Site:
    """The environments of one rank, and the model that all ranks improve together.

    Args:
        config: What the user asked for.
        world: The ranks.
        device: Where the model is trained.

    Attributes:
        world: The ranks.
        flat: The model.
    """

    def __init__(self, config: ReinforcementConfig, world: World, device: str) -> None:
        self._config, self.world = config, world
        self._own = slice(*balanced_range(config.num_envs, world.size, world.rank))
        self._environments = Environments(range(config.num_envs)[self._own], config.seed)
        envs = self._environments
        self.flat = FlatModel(policy.build(envs.num_inputs, envs.num_actions, seed=config.seed), device)
        self._learner = Learner(
            self.flat,
            optimizers.build("adam", config.learning_rate),
            averaging=Gradients(mean_all_reduce(world, self.flat.num_padded))
            if world.size > 1
            else Nothing(),
            device=device,
            scale=world.size * NUM_MINIBATCHES / config.batch_size,
        )
        start_equal(world, self._learner.variables)
        _, order = self._draw(0)
        _, num_steps, num_envs = order.shape
        self._learner.warm_up(_nothing_seen(num_steps, num_envs, envs.num_inputs), order)

    def updates(self, control: Control) -> Iterator[UpdateRecord]:
        """Plays and learns, on all ranks together; after each update the ranks agree whether to go on.

        Raises:
            DivergedError: the weights are not finite, or went apart; on all ranks.
        """
        config, world = self._config, self.world
        begin = time.perf_counter()
        for number in range(1, config.updates + 1):
            watchdog.note(f"update {number}")
            timeline.begin_epoch(number)
            with timeline.phase("host"):
                returns = self._update(number)
            finite = bool(np.isfinite(self.flat.weights.numpy()).all())
            decision = control.agree(
                first=number - 1, stop=number, elapsed_s=time.perf_counter() - begin, finite=finite
            )
            if decision.diverged:
                raise DivergedError(
                    f"update {number}: the weights became NaN or infinite", remedy="a smaller --learning-rate"
                )
            check_equal(world, self.flat.arrays(), when=f"after update {number}")
            timeline.end_epoch()
            total, count = world.sum(np.array([sum(returns), len(returns)], np.float64))
            yield UpdateRecord(
                update=number,
                env_steps=number * config.batch_size,
                elapsed_s=decision.slowest_s,
                num_episodes=int(count),
                mean_reward=float(total / count) if count else None,
            )

    def evaluate(self) -> list[float]:
        """Sum of the rewards of each of the evaluation's episodes, which are dealt out to the ranks."""
        numbers = range(*balanced_range(NUM_EVALUATED, self.world.size, self.world.rank))
        mine: list[float] = []
        if numbers:
            actor = self._actor()
            environments = Environments(numbers, self._config.seed, evaluation=True)
            mine = first_returns(environments.play(lambda seen, _: actor.greedy(seen), MAX_STEPS))
        return [one for rank in self.world.gather_all(mine) for one in rank]

    def _update(self, number: int) -> list[float]:
        """Plays, learns from it, and gives the returns of the episodes that ended."""
        config = self._config
        rate = config.learning_rate * (1 - (number - 1) / config.updates)
        self._learner.update.optimizer.learning_rate.assign(rate)
        actor = self._actor()
        chances, order = self._draw(number)
        with timeline.phase("play"):
            seen = self._environments.play(
                lambda now, step: actor.sample(now, chances[step]), config.num_steps
            )
        lesson = self._lesson(seen, actor)
        with timeline.phase("compute", 0, NUM_PASSES * NUM_MINIBATCHES):
            self._learner.improve(lesson, order)
        return seen.returns

    def _lesson(self, seen: Experience, actor: policy.Actor) -> Lesson:
        values = actor.values(seen.observations)
        gains = advantages.estimate(
            # So that values, which add up what comes, stay in the size of one reward.
            (1 - DISCOUNT) * seen.rewards,
            values,
            actor.values(seen.next_observations),
            seen.terminated,
            seen.ended,
            discount=DISCOUNT,
            decay=DECAY,
        )
        return Lesson(
            observations=seen.observations,
            actions=seen.actions,
            log_probabilities=actor.log_probabilities(seen.observations, seen.actions),
            advantages=advantages.standardise(gains, self.world).astype(np.float32),
            returns=(gains + values).astype(np.float32),
        )

    def _actor(self) -> policy.Actor:
        return policy.Actor(self.flat.unflatten(self.flat.weights.numpy()))

    def _draw(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """What an update leaves to chance in this rank's environments; every rank draws that of all.

        Returns:
            float64 (num_steps, num_envs), with which actions are drawn; and the order for
            ``Learner.improve``.
        """
        config = self._config
        rng = np.random.default_rng([config.seed, _STREAM, number])
        chances = rng.random((config.num_steps, config.num_envs))
        steps = np.arange(config.num_steps, dtype=np.int32)[:, np.newaxis]
        shape = (NUM_PASSES, config.num_steps, config.num_envs)
        order = rng.permuted(np.broadcast_to(steps, shape), axis=1)
        return chances[:, self._own], order[:, :, self._own]


def _nothing_seen(num_steps: int, num_envs: int, num_inputs: int) -> Lesson:
    nothing = np.zeros((num_steps, num_envs), np.float32)
    return Lesson(
        observations=np.zeros((num_steps, num_envs, num_inputs), np.float32),
        actions=nothing.astype(np.int32),
        log_probabilities=nothing,
        advantages=nothing,
        returns=nothing,
    )
