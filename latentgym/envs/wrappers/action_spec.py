"""What actions mean, for environments that do not say so themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latentgym.envs.contract import EnvContract, contract_of
from latentgym.envs.wrappers.rebuilding import RebuiltFromSpec
from latentgym.errors import LatentGymError
from latentgym.trajectories.episode import ActionSpec


def action_spec_of(space: spaces.Space[Any], env_id: str = "environment") -> ActionSpec:
    """The action spec that a flat Box space alone can tell: bounds, but neither frame, units nor grouping.

    Raises:
        LatentGymError: if the space is not a bounded one-dimensional Box.
    """
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise LatentGymError(
            f"{env_id} has the action space {space}; the suite needs continuous actions, a one-dimensional "
            "gymnasium.spaces.Box (for example the continuous variant of the environment)"
        )
    if not space.is_bounded():
        raise LatentGymError(
            f"{env_id} has an unbounded action space {space}; wrap it in gymnasium.wrappers.RescaleAction or clip it"
        )
    size = space.shape[0]
    return ActionSpec(
        names=tuple(f"action_{index}" for index in range(size)),
        frame="environment",
        mode="absolute",
        units=("1",) * size,
        scale=(1.0,) * size,
        low=tuple(map(float, space.low)),
        high=tuple(map(float, space.high)),
    )


def checked_action(action: Any, space: spaces.Box, env_id: str) -> NDArray[np.float32]:
    """``action`` as ``(A,)`` float32, clipped to ``space``.

    Raises:
        LatentGymError: if its shape is wrong or a value is NaN or infinite.
    """
    values = np.asarray(action, np.float32)
    if values.shape != space.shape:
        raise LatentGymError(f"{env_id}: an action has shape {space.shape}, found {values.shape}")
    if not np.isfinite(values).all():
        raise LatentGymError(f"{env_id}: action {values.tolist()} holds NaN or infinite values; check the policy")
    return np.clip(values, space.low, space.high)


def same_bounds(space: spaces.Space[Any], spec: ActionSpec) -> bool:
    """Whether the actions of ``space`` are bounded as ``spec`` says, in float32."""
    if not isinstance(space, spaces.Box) or space.shape != (spec.size,):
        return False
    pairs = ((space.low, spec.low), (space.high, spec.high))
    return all(np.array_equal(np.asarray(found, np.float32), np.asarray(said, np.float32)) for found, said in pairs)


def action_wrappers(env: gymnasium.Env[Any, Any]) -> list[str]:
    """Names of the action wrappers between ``env`` and what states its action spec, the outermost first."""
    names = []
    level: Any = env
    while isinstance(level, gymnasium.Wrapper):
        passes_on = isinstance(level, RebuiltFromSpec) and not isinstance(level, ActionSpecWrapper)
        if not passes_on and ("contract" in vars(level) or hasattr(type(level), "contract")):
            break
        if isinstance(level, gymnasium.ActionWrapper):
            names.append(type(level).__name__)
        level = level.env
    return names


class ActionSpecWrapper(gymnasium.Wrapper[Any, Any, Any, Any], RebuiltFromSpec):
    """States what the action's dimensions mean: the contract of the wrapped environment with another action spec.

    Args:
        env: an environment that states a contract.
        action_spec: the better description, or its fields as JSON types.

    Raises:
        LatentGymError: if ``action_spec`` disagrees with the action space.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], action_spec: ActionSpec | Mapping[str, Any]) -> None:
        if isinstance(action_spec, Mapping):
            action_spec = ActionSpec.from_dict(dict(action_spec))
        RebuiltFromSpec.__init__(self, action_spec=dataclasses.asdict(action_spec))
        gymnasium.Wrapper.__init__(self, env)
        space = action_spec_of(env.action_space, contract_of(env).env_id)
        if not same_bounds(env.action_space, action_spec):
            raise LatentGymError(
                f"{contract_of(env).env_id}: the action spec has bounds {action_spec.low} to {action_spec.high}, "
                f"the action space {space.low} to {space.high}"
            )
        self._action_spec = action_spec

    @property
    def contract(self) -> EnvContract:
        """The wrapped contract with the given action spec."""
        return dataclasses.replace(contract_of(self.env), action_spec=self._action_spec)
