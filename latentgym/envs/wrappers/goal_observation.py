"""What success looks like, observed from the first step on: the goal of goal-conditioned policies."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latentgym.envs.contract import EnvContract, contract_of
from latentgym.envs.make import make_expert
from latentgym.envs.wrappers.rebuilding import RebuiltFromSpec
from latentgym.errors import LatentGymError
from latentgym.seeding import numpy_generator


def goal_key(key: str) -> str:
    """Name of the goal's observation ``key``, such as ``"goal_pixels"``."""
    return f"goal_{key}"


class GoalObservation(gymnasium.Wrapper[Any, Any, Any, Any], RebuiltFromSpec):
    """Adds the observation that the environment's expert ends with, under ``"goal_<key>"`` for every key.

    A reset plays the episode once with the expert, up to its first success or to the end, and then starts it over with
    the same seed. Episodes therefore cost twice the steps. ``info["goal_reached"]`` of a reset tells whether the
    expert succeeded.

    Args:
        env: an environment of the suite that has an expert.
        seed: root seed of what the expert draws.

    Raises:
        LatentGymError: if it has no expert, or observes no ``Dict``.

    Example:
        >>> from latentgym import make_env
        >>> env = GoalObservation(make_env("latentgym/TabletopReach-v0", pixels=False))
        >>> observation, info = env.reset(seed=0)
        >>> sorted(observation), info["goal_reached"]
        (['goal_proprio', 'goal_state', 'proprio', 'state'], True)
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, seed: int = 0) -> None:
        RebuiltFromSpec.__init__(self, seed=seed)
        gymnasium.Wrapper.__init__(self, env)
        if not isinstance(env.observation_space, spaces.Dict):
            raise LatentGymError(f"goal observation: expected a Dict of observations, found {env.observation_space}")
        known = dict(env.observation_space.spaces)
        self.observation_space = spaces.Dict(known | {goal_key(key): space for key, space in known.items()})
        self._expert, self._seed = make_expert(env), seed
        self._goal: dict[str, NDArray[Any]] = {}

    @property
    def contract(self) -> EnvContract:
        """The wrapped contract, with ``goal`` among its settings."""
        contract = contract_of(self.env)
        return dataclasses.replace(contract, settings={**contract.settings, "goal": True})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Find the goal of an episode, and start it."""
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        observation, info = self.env.reset(seed=seed, options=options)
        self._expert.reset(self.env, numpy_generator(self._seed, "goal", seed))
        reached, ended = bool(info["is_success"]), False
        while not reached and not ended:
            action = self._expert.act(self.env, observation)
            observation, _, terminated, truncated, info = self.env.step(action)
            reached, ended = bool(info["is_success"]), terminated or truncated
        self._goal = {goal_key(key): np.array(value) for key, value in observation.items()}
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with_goal(observation), {**info, "goal_reached": reached}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_goal(observation), reward, terminated, truncated, info

    def _with_goal(self, observation: dict[str, Any]) -> dict[str, Any]:
        return {**observation, **{key: value.copy() for key, value in self._goal.items()}}
