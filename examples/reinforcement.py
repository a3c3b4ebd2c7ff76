"""Proximal policy optimization (PPO) over MPI: ranks play CartPole in parallel and train one policy.

    python examples/reinforcement.py
    mpiexec -n 2 python examples/reinforcement.py --seed 2
    mpiexec -n 4 python examples/reinforcement.py --num-envs 128 --batch-size 32768 --updates 100

Requires Gymnasium and no data set. Writes reinforcement.json and reward.png to --out. Each rank plays its own
environments; advantages are standardized over all ranks, and one all-reduce averages the gradient of each
minibatch, so all ranks keep the same weights. PPO: Schulman et al. 2017, arXiv:1707.06347. Generalized
advantage estimation (GAE): Schulman et al. 2016, arXiv:1506.02438.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import mpi_train
from mpi_train.monitor.progress import Progress
from mpi_train.runs.job import guarded, read_flags
from mpi_train.runtime import devices, files
from mpi_train.runtime.errors import DivergedError, PlatformError, UsageError, unwritable
from mpi_train.runtime.flags import as_dict, at_least, option
from mpi_train.runtime.world import World, join

MAX_STEPS, NUM_EVALUATED = 500, 20  # longest episode, in steps; episodes of the final evaluation
DISCOUNT, GAE_DECAY, CLIP = 0.99, 0.99, 0.2
NUM_PASSES, NUM_MINIBATCHES, NUM_HIDDEN = 6, 4, 64


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of this example."""

    seed: int = option(1, "seed of the weights, the environments and the choice of actions")
    num_envs: int = option(64, "environments, over all ranks together")
    batch_size: int = option(16384, "environment steps between two updates, over all ranks together")
    updates: int = option(50, "number of policy updates")
    learning_rate: float = option(0.01, "initial step size of Adam; it decreases linearly to 0")
    out: Path = option(Path("results/reinforcement"), "folder for reinforcement.json and reward.png", "DIR")

    def __post_init__(self) -> None:
        at_least("--seed", self.seed, 0)
        at_least("--num-envs", self.num_envs, 1)
        at_least("--updates", self.updates, 1)
        unit = NUM_MINIBATCHES * self.num_envs
        if self.batch_size < 1 or self.batch_size % unit:
            raise UsageError(f"--batch-size: expected a multiple of {unit}. Got: {self.batch_size}")
        if not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"--learning-rate: expected a number above 0. Got: {self.learning_rate}")


class Experience(NamedTuple):
    """Steps of one rank's environments; arrays are (num_steps, num_envs, ...)."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminated: np.ndarray
    ended: np.ndarray  # terminated, or cut off after MAX_STEPS
    resets: np.ndarray  # steps that only began a new episode; Gymnasium ignores their actions


class Environments:
    """CartPole environments of one rank, stepped together; ``returns`` collects each episode's reward."""

    def __init__(self, num_envs: int, seed: list[int]) -> None:
        try:
            from gymnasium import make_vec
            from gymnasium.wrappers.vector import RecordEpisodeStatistics
        except ImportError as error:
            raise PlatformError("Gymnasium is missing", remedy="python -m pip install gymnasium") from error
        envs = make_vec("CartPole-v1", num_envs, vectorization_mode="vector_entry_point")
        self._envs = RecordEpisodeStatistics(envs, buffer_length=1 << 20)
        self.returns = self._envs.return_queue
        self._observations, _ = self._envs.reset(seed=int(np.random.SeedSequence(seed).generate_state(1)[0]))
        self._ended = np.zeros(num_envs, bool)

    def play(self, policy: Callable[[np.ndarray], np.ndarray], num_steps: int) -> Experience:
        """Play ``num_steps`` steps; ``policy`` chooses actions (num_envs,) for observations (num_envs, 4)."""
        steps = []
        for _ in range(num_steps):
            before, resets = self._observations, self._ended
            actions = policy(before)
            self._observations, rewards, terminated, truncated, _ = self._envs.step(actions)
            self._ended = terminated | truncated
            steps.append((before, actions, rewards, self._observations, terminated, self._ended, resets))
        return Experience(*map(np.stack, zip(*steps, strict=True)))


def network(weights: list[np.ndarray], inputs: np.ndarray) -> np.ndarray:
    """Compute the policy's logits (of ``weights[:4]``) or values (of ``weights[4:]``), without TensorFlow."""
    kernel, bias, last_kernel, last_bias = weights
    return np.tanh(inputs @ kernel + bias) @ last_kernel + last_bias


def log_policy(weights: list[np.ndarray], observations: np.ndarray) -> np.ndarray:
    """Compute the log probability of each action: (..., 2)."""
    logits = network(weights[:4], observations)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def draw_actions(rng: np.random.Generator, weights: list[np.ndarray], observations: np.ndarray) -> np.ndarray:
    """Draw one action for each observation from the policy: int32 (num_envs,)."""
    return (np.exp(log_policy(weights, observations)[:, 0]) <= rng.random(len(observations))).astype(np.int32)


def advantages(seen: Experience, values: np.ndarray, next_values: np.ndarray) -> np.ndarray:
    """Estimate generalized advantages (GAE, equation 16): (num_steps, num_envs); 0 for resets."""
    # A cut-off episode keeps the value of its last state. The scale keeps values at the size of one reward.
    errors = (1 - DISCOUNT) * seen.rewards + DISCOUNT * next_values * ~seen.terminated - values
    result, later = np.zeros(errors.shape), np.zeros(errors.shape[1])
    for step in reversed(range(len(errors))):
        result[step] = later = errors[step] + DISCOUNT * GAE_DECAY * later * ~seen.ended[step]
    return result * ~seen.resets


def prepare(seen: Experience, weights: list[np.ndarray], world: World) -> list[np.ndarray]:
    """Compute the arguments of a training step, one row for each environment step; on all ranks together."""
    values = network(weights[4:], seen.observations)[..., 0]
    gains = advantages(seen, values, network(weights[4:], seen.next_observations)[..., 0])
    count, total, squares = world.sum(np.array([gains.size, gains.sum(), (gains**2).sum()]))
    standard = (gains - total / count) / (np.sqrt(squares / count - (total / count) ** 2) + 1e-8)
    taken = np.take_along_axis(log_policy(weights, seen.observations), seen.actions[..., None], -1)
    rows = [array.astype(np.float32).ravel() for array in (taken, standard * ~seen.resets, gains + values)]
    return [seen.observations.reshape(-1, 4), seen.actions.ravel(), *rows]


def build(config: Config, world: World) -> tuple[Any, Any, Any]:
    """Build the flat model, its Adam and the compiled training step on a minibatch; on all ranks together."""
    with devices.quiet_start():  # TensorFlow is imported after the ranks have divided the cores
        import keras
        import tensorflow as tf

        from mpi_train.models import optimizers

        device = devices.own_device(world)
    keras.utils.set_random_seed(config.seed)
    inputs, outputs = keras.Input((4,)), []
    for num_outputs, scale in ((2, 1e-4), (1, 1.0)):  # policy (nearly uniform at first), value function
        last = keras.layers.Dense(num_outputs, kernel_initializer=keras.initializers.VarianceScaling(scale))
        first = keras.layers.Dense(NUM_HIDDEN, activation="tanh")
        outputs.append(keras.Sequential([first, last])(inputs))
    flat = mpi_train.FlatModel(keras.Model(inputs, outputs), device)
    update = optimizers.update_for(optimizers.build("adam", config.learning_rate), flat, device)
    mpi_train.start_equal(world, [flat.weights.value, *update.variables])
    mean = mpi_train.mean_all_reduce(world, flat.num_padded) if world.size > 1 else tf.identity

    @tf.function(autograph=False, reduce_retracing=True)
    def step(observations: Any, actions: Any, old: Any, gains: Any, returns: Any) -> None:
        pieces = flat.slices(tf.identity(flat.weights.value))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(pieces)
            (logits, values), _ = flat.call(pieces, [], observations, training=True)
            ratio = tf.exp(-tf.nn.sparse_softmax_cross_entropy_with_logits(actions, logits) - old)
            clipped = tf.clip_by_value(ratio, 1 - CLIP, 1 + CLIP)
            losses = tf.square(values[:, 0] - returns) - tf.minimum(ratio * gains, clipped * gains)
            # The mean of these scaled sums over the ranks is the mean over the minibatch.
            loss = tf.reduce_sum(losses) * (world.size * NUM_MINIBATCHES / config.batch_size)
        update.apply(mean(flat.concat(tape.gradient(loss, pieces))))

    return flat, update.optimizer, step


def train(config: Config, world: World) -> dict[str, Any]:
    """Train and evaluate the policy, write the result and return it; on all ranks together."""
    at_least("--num-envs", config.num_envs, world.size)
    num_envs = len(range(world.rank, config.num_envs, world.size))
    with world.together():  # raises an error of one rank on all of them
        environments = Environments(num_envs, [config.seed, 0, world.rank])
    flat, adam, step = build(config, world)
    progress = Progress(speaks=world.is_root)
    progress.say(f"CartPole: {config.num_envs} environments, ranks {world.size}, seed {config.seed}")
    rng = np.random.default_rng([config.seed, 1, world.rank])
    start, history = time.perf_counter(), []
    for number in range(1, config.updates + 1):
        adam.learning_rate.assign(config.learning_rate * (1 - (number - 1) / config.updates))
        weights = flat.unflatten(flat.weights.numpy())
        seen = environments.play(partial(draw_actions, rng, weights), config.batch_size // config.num_envs)
        rows = prepare(seen, weights, world)
        for _ in range(NUM_PASSES):
            for chosen in np.split(rng.permutation(seen.actions.size), NUM_MINIBATCHES):
                step(*(array[chosen] for array in rows))
        mpi_train.check_equal(world, flat.arrays(), when=f"after update {number}")
        if not np.isfinite(flat.weights.numpy()).all():
            raise DivergedError(f"update {number}: weights not finite", remedy="a smaller --learning-rate")
        total, count = world.sum(np.array([sum(environments.returns), len(environments.returns)], float))
        environments.returns.clear()
        reward, elapsed_s = total / max(count, 1), world.maximum(time.perf_counter() - start)
        history.append({"update": number, "elapsed_s": elapsed_s, "mean_reward": reward if count else None})
        if number % max(1, config.updates // 10) == 0 or number == config.updates:
            progress.say(f"update {number}/{config.updates}  {elapsed_s:.2f} s  mean reward {reward:.1f}")
    rewards = evaluate(config, world, flat.unflatten(flat.weights.numpy()))
    outcome = {"mean_reward": float(np.mean(rewards)), "episode_rewards": rewards, "history": history}
    result = {**as_dict(config), "world_size": world.size, "train_s": elapsed_s, **outcome}
    with world.together():
        if world.is_root:
            write(result, config.out)
    progress.say(f"mean reward {result['mean_reward']:.1f} over {len(rewards)} episodes; {config.out}")
    return result


def evaluate(config: Config, world: World, weights: list[np.ndarray]) -> list[float]:
    """Play new episodes by the most probable actions, divided over the ranks, and return their rewards."""
    mine: list[float] = []
    if num_envs := len(range(world.rank, NUM_EVALUATED, world.size)):
        environments = Environments(num_envs, [config.seed, 2, world.rank])
        seen = environments.play(lambda now: log_policy(weights, now).argmax(-1), MAX_STEPS)
        mine = (seen.ended.argmax(0) + 1.0).tolist()  # CartPole gives a reward of 1 for each step
    return [reward for rank in world.gather_all(mine) for reward in rank]


def write(result: dict[str, Any], out: Path) -> None:
    """Write the result as JSON, and the mean reward over the training time as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*((each["elapsed_s"], each["mean_reward"]) for each in result["history"]), strict=True))
    axes.set(xlabel="training time [s]", ylabel="mean reward of finished episodes", ylim=(0, 520))
    try:
        out.mkdir(parents=True, exist_ok=True)
        files.write_json(out / "reinforcement.json", result)
        figure.savefig(out / "reward.png", dpi=120)
    except OSError as error:
        raise unwritable(out, error) from error


def main() -> None:
    """Join the ranks, divide the cores among them, and train."""
    world = join()
    config = read_flags(
        Config, text="Train PPO on CartPole over MPI.", prog="python examples/reinforcement.py"
    )
    devices.claim_cores(world, None)
    train(config, world)


if __name__ == "__main__":
    guarded(main)
