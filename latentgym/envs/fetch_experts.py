"""Scripted experts for the Fetch tasks: functions of the current ``"state"``, so that they can be cloned."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from latentgym.envs.contract import Expert
from latentgym.envs.experts import Memoryless

_METRES_PER_UNIT = 0.05
_OPEN, _CLOSE = 1.0, -1.0

Vector = NDArray[np.float64]


class FetchExpert(Memoryless, abc.ABC):
    """What the experts share: a target for the gripper becomes an action by proportional control."""

    _GAIN = 1.0

    def act(self, env: gymnasium.Env[Any, Any], observation: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The action ``(4,)`` for the current state, inside [-1, 1].

        Args:
            env: unused; the observation holds all that is needed.
            observation: with ``"state"``: the task's own observation, then the goal.
        """
        state = observation["state"].astype(np.float64)
        target, fingers = self._target(state[:-3], state[-3:])
        action = np.append(self._GAIN * (target - state[:3]) / _METRES_PER_UNIT, fingers)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    @abc.abstractmethod
    def _target(self, seen: Vector, goal: Vector) -> tuple[Vector, float]:
        """Where the gripper should go, ``(3,)`` in metres, and what the fingers should do."""


class ReachExpert(FetchExpert):
    """Goes to the goal."""

    def _target(self, seen: Vector, goal: Vector) -> tuple[Vector, float]:
        return goal, _OPEN


class PickAndPlaceExpert(FetchExpert):
    """Hovers above the block, descends, closes the fingers on it and carries it to the goal."""

    _HOVER_M = 0.08
    _CENTRED_M = 0.012
    _AROUND_M = 0.012
    _HOLDING_OPENING_M = 0.052  # the block is 0.05 m wide

    def _target(self, seen: Vector, goal: Vector) -> tuple[Vector, float]:
        gripper, block, opening = seen[:3], seen[3:6], seen[9] + seen[10]
        offset = block - gripper
        centred = np.hypot(offset[0], offset[1]) < self._CENTRED_M
        around = centred and abs(offset[2]) < self._AROUND_M
        if around and opening < self._HOLDING_OPENING_M:
            return goal - offset, _CLOSE
        if around:
            return gripper, _CLOSE
        return block + np.array([0.0, 0.0, 0.0 if centred else self._HOVER_M]), _OPEN


class PushExpert(FetchExpert):
    """Goes around the block to the side away from the goal, lowers the closed fingers there and pushes.

    While it pushes it steers: it stays on the line from the goal through the block.
    """

    _BEHIND_M = 0.075
    _HOVER_M = 0.09
    _STEP_M = 0.03
    _STEERING = 1.5
    _ALIGNED_M = 0.015
    _LOST_M = 0.035
    _REACHED_M = 0.015
    _LOW_M = 0.03

    def _target(self, seen: Vector, goal: Vector) -> tuple[Vector, float]:
        gripper, block = seen[:3], seen[3:6]
        way = (goal - block)[:2]
        distance = float(np.hypot(*way))
        if distance < self._REACHED_M:
            return gripper, _CLOSE
        forward = way / distance
        behind = (block - gripper)[:2]
        ahead = float(behind @ forward)
        aside = behind - ahead * forward
        low = gripper[2] < block[2] + self._LOW_M
        if low and ahead > 0 and np.hypot(*aside) < self._LOST_M:
            step = gripper[:2] + forward * min(self._STEP_M, distance + ahead) + self._STEERING * aside
            return np.append(step, block[2]), _CLOSE
        place = np.append(block[:2] - self._BEHIND_M * forward, block[2])
        above = np.hypot(*(place - gripper)[:2]) < self._ALIGNED_M
        if low and not above:
            return np.append(gripper[:2], block[2] + self._HOVER_M), _CLOSE
        return place + np.array([0.0, 0.0, 0.0 if above else self._HOVER_M]), _CLOSE


class SlideExpert(PushExpert):
    """Pushes like :class:`PushExpert`, fast, and stops where friction will carry the puck to the goal.

    A puck of speed v slides v² / (2 μ g) further.
    """

    _STEP_M = 0.05
    _BEHIND_M = 0.1
    _FRICTION_MU = 0.1
    _GRAVITY_M_S2 = 9.81
    _CONTROL_HZ = 25.0

    def _target(self, seen: Vector, goal: Vector) -> tuple[Vector, float]:
        gripper, puck = seen[:3], seen[3:6]
        way = (goal - puck)[:2]
        # The observed velocity is the puck's relative to the gripper, and in metres per control step.
        speed = float(np.hypot(*(seen[14:16] + seen[20:22]))) * self._CONTROL_HZ
        coasts = speed**2 / (2 * self._FRICTION_MU * self._GRAVITY_M_S2)
        if coasts >= np.hypot(*way):
            return gripper + np.array([0.0, 0.0, self._HOVER_M]), _CLOSE
        return super()._target(seen, goal)


FETCH_EXPERTS: dict[str, Callable[[], Expert]] = {
    "Reach": ReachExpert,
    "Push": PushExpert,
    "Slide": SlideExpert,
    "PickAndPlace": PickAndPlaceExpert,
}
