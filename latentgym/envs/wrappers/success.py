"""A boolean ``is_success`` in every info, whatever the environment calls it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium

from latentgym.envs.wrappers.rebuilding import RebuiltFromSpec


class SuccessInfo(gymnasium.Wrapper[Any, Any, Any, Any], RebuiltFromSpec):
    """Puts ``info["is_success"]`` into every reset and step, from the first of ``keys`` that the info holds.

    A number counts as success when it is not 0. Where no key is found the value is ``False``: success is never guessed
    from ``terminated`` or the reward.

    Args:
        env: any environment.
        keys: info keys that may state success.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], keys: Sequence[str] = ("is_success", "success")) -> None:
        RebuiltFromSpec.__init__(self, keys=list(keys))
        gymnasium.Wrapper.__init__(self, env)
        self._keys = tuple(keys)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, info | {"is_success": self._success(info)}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, info | {"is_success": self._success(info)}

    def _success(self, info: Mapping[str, Any]) -> bool:
        return next((bool(info[key]) for key in self._keys if key in info), False)
