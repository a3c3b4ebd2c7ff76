"""The environments of one rank: played by the policy to learn from, and by its best actions to evaluate it.

An environment is known by its number among those of all ranks. Its seed, and the chances by which actions
are drawn in it, depend on that number and not on the rank that plays it: one rank with all environments
and several with their parts see the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

NAME = "CartPole-v1"
MAX_STEPS = 500
"""After which an episode is cut off."""
_TRAINING, _EVALUATION = 0x7EA, 0xE7A
"""Keep the episodes that are learnt from apart from those of the evaluation."""


@dataclass(frozen=True)
class Experience:
    """What the environments of one rank did in some steps; arrays are (num_steps, num_envs, ...).

    Attributes:
        observations: float32, before each step.
        next_observations: float32, after it; where an episode ended its last, and not the first of the next.
        actions: int32.
        rewards: float32.
        terminated: bool, the episode came to its own end.
        ended: bool, it came to that or to its limit of time.
        returns: Sum of the rewards of each episode that ended.
    """

    observations: np.ndarray
    next_observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    ended: np.ndarray
    returns: list[float]


class Environments:
    """Some of the environments of a run, stepped one after another; each begins anew when it has ended.

    Args:
        numbers: Which ones.
        seed: Of the run.
        evaluation: Whether they are for evaluation, and have other seeds.

    Attributes:
        num_inputs: Length of an observation.
        num_actions: How many there are to choose from.
    """

    def __init__(self, numbers: range, seed: int, *, evaluation: bool = False) -> None:
        # Each an object of its own, not Gymnasium's one array of all, which has one seed: with it the
        # episodes of an environment would depend on which others a rank has.
        self._envs = SyncVectorEnv(
            [lambda: gymnasium.make(NAME) for _ in numbers], autoreset_mode=AutoresetMode.SAME_STEP
        )
        observation, action = self._envs.single_observation_space, self._envs.single_action_space
        assert isinstance(observation, Box)
        assert isinstance(action, Discrete)
        self.num_inputs, self.num_actions = observation.shape[0], int(action.n)
        stream = _EVALUATION if evaluation else _TRAINING
        seeds = [np.random.SeedSequence([seed, stream, number]).generate_state(1) for number in numbers]
        self._observations, _ = self._envs.reset(seed=[int(one[0]) for one in seeds])
        self._returns = np.zeros(len(numbers))

    def play(self, act: Callable[[np.ndarray, int], np.ndarray], num_steps: int) -> Experience:
        """Takes steps in all of them.

        Args:
            act: Gives the actions, int (num_envs,), for float32 (num_envs, num_inputs) and the number of the
                step, from 0.
            num_steps: How many.
        """
        num_envs = self._envs.num_envs
        shape = (num_steps, num_envs)
        seen = Experience(
            observations=np.empty((*shape, self.num_inputs), np.float32),
            next_observations=np.empty((*shape, self.num_inputs), np.float32),
            actions=np.empty(shape, np.int32),
            rewards=np.empty(shape, np.float32),
            terminated=np.empty(shape, bool),
            ended=np.empty(shape, bool),
            returns=[],
        )
        for step in range(num_steps):
            before = self._observations
            actions = act(before, step)
            after, rewards, terminated, truncated, infos = self._envs.step(actions)
            ended = terminated | truncated
            seen.observations[step], seen.actions[step] = before, actions
            seen.next_observations[step], seen.rewards[step] = after, rewards
            seen.terminated[step], seen.ended[step] = terminated, ended
            self._observations = after
            self._returns += rewards
            for env in np.flatnonzero(ended):
                seen.next_observations[step, env] = infos["final_obs"][env]
                seen.returns.append(float(self._returns[env]))
                self._returns[env] = 0
        return seen


def first_returns(seen: Experience) -> list[float]:
    """Sum of the rewards of each environment's first episode; of steps in which all of them ended."""
    lengths = seen.ended.argmax(0) + 1
    return [float(seen.rewards[:length, env].sum()) for env, length in enumerate(lengths)]
