"""Scripted experts for the adapted suites; they look at the simulator's state, never at pixels."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from latentgym.errors import LatentGymError, UnknownNameError, require


class Memoryless:
    """An expert that is a function of the current state, so that it can be cloned."""

    def reset(self, env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> None:
        """Nothing to prepare: the expert has no memory and no randomness."""


class MetaWorldExpert(Memoryless):
    """Meta-World's scripted policy for one task, a function of the current observation.

    Args:
        task: Meta-World's name of the task, such as ``"reach-v3"``.

    Raises:
        UnknownNameError: if Meta-World ships no policy for ``task``.
        MissingExtraError: if Meta-World is not installed.
    """

    def __init__(self, task: str) -> None:
        policies = require("metaworld.policies", "metaworld").ENV_POLICY_MAP
        if task not in policies:
            raise UnknownNameError("Meta-World expert", task, policies)
        self._policy = policies[task]()

    def act(self, env: gymnasium.Env[Any, Any], observation: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The action ``(4,)`` for the current state, clipped to [-1, 1]."""
        action = self._policy.get_action(env.unwrapped.raw_observation)  # type: ignore[attr-defined]
        return np.asarray(np.clip(action, -1.0, 1.0), np.float32)


class LiftExpert:
    """Reaches, grasps and lifts robosuite's cube; a function of the current state, so that it can be cloned.

    It hovers above the cube, descends when centred, closes the fingers when around the cube, and lifts once they have
    stopped on it. Translations only: the open fingers span the cube's diagonal.
    """

    _METRES_PER_UNIT = 0.05
    _GAIN = 2.0
    _HOVER_HEIGHT_M = 0.06
    _CENTRED_M = 0.015
    _AROUND_M = 0.012
    _STILL_AROUND_M = 0.025
    _CLOSING_OPENING_M = 0.074
    _HOLDING_OPENING_M = 0.056
    _LIFT_HEIGHT_M = 0.93

    def reset(self, env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> None:
        """Check that ``env`` is Lift.

        Raises:
            LatentGymError: if it is another task.
        """
        if getattr(env.unwrapped, "task_name", None) != "Lift":
            raise LatentGymError(f"LiftExpert plays robosuite/Lift-v0 only, not {env}")

    def act(self, env: gymnasium.Env[Any, Any], observation: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The action ``(7,)`` for the current state, inside [-1, 1].

        Args:
            env: unused; the observation holds all that is needed.
            observation: with ``"state"``: gripper position at 0–2, fingers at 9–10, cube position at 11–13.
        """
        state = observation["state"].astype(np.float64)
        gripper, opening, cube = state[:3], state[9] - state[10], state[11:14]
        offset = cube - gripper
        centred = np.hypot(offset[0], offset[1]) < self._CENTRED_M
        closing = opening < self._CLOSING_OPENING_M
        around = centred and abs(offset[2]) < (self._STILL_AROUND_M if closing else self._AROUND_M)
        target = cube.copy()
        if around and opening < self._HOLDING_OPENING_M:
            target = np.array([gripper[0], gripper[1], self._LIFT_HEIGHT_M])
        elif not centred:
            target[2] += self._HOVER_HEIGHT_M
        action = np.zeros(7)
        action[:3] = self._GAIN * (target - gripper) / self._METRES_PER_UNIT
        action[6] = 1.0 if around else -1.0
        return np.clip(action, -1.0, 1.0).astype(np.float32)
