"""A boolean ``is_success`` in every info, whatever the environment calls it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium

from latentgym.envs.wrappers.rebuilding import RebuiltFromSpec

_OPEN_TASKS = "tasks_to_complete"


class SuccessInfo(gymnasium.Wrapper[Any, Any, Any, Any], RebuiltFromSpec):
    """Puts ``info["is_success"]`` into every reset and step, from the first of ``keys`` that the info holds.

    A number counts as success when it is not 0, and so does an empty list of ``"tasks_to_complete"``, by which
    Gymnasium-Robotics' kitchen says that all is done. Where no key is found the value is ``False``, with one warning
    at the end of such an episode: success is never guessed from ``terminated`` or the reward.

    Args:
        env: any environment.
        keys: info keys that may state success.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], keys: Sequence[str] = ("is_success", "success")) -> None:
        RebuiltFromSpec.__init__(self, keys=list(keys))
        gymnasium.Wrapper.__init__(self, env)
        self._keys = tuple(keys)
        self._stated = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, info | {"is_success": self._success(info)}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._stated |= bool({*self._keys, _OPEN_TASKS} & info.keys())
        if (terminated or truncated) and not self._stated:
            _warn_once(self.spec.id if self.spec is not None else str(self.env.unwrapped), self._keys)
        return observation, reward, terminated, truncated, info | {"is_success": self._success(info)}

    def _success(self, info: Mapping[str, Any]) -> bool:
        stated = next((key for key in self._keys if key in info), None)
        if stated is None:
            return _OPEN_TASKS in info and len(info[_OPEN_TASKS]) == 0
        return bool(info[stated])


@functools.cache
def _warn_once(name: str, keys: tuple[str, ...]) -> None:
    """Say it once per process, whatever filter is on."""
    warnings.warn(
        f"{name} states no success: its info holds none of {', '.join(keys)}, so that no episode ever succeeds; judge "
        "policies by their reward, or put 'is_success' into the info",
        stacklevel=3,
    )
