"""The hand as experts see it: where it is, where things are, and how to move there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentgym.envs.calvin.robot import METRES_PER_UNIT, RADIANS_PER_UNIT
from latentgym.envs.calvin.scene import DRAWER, LED, LIGHTBULB, SLIDER, SWITCH

Vector = NDArray[np.float64]
Motion = Iterator[NDArray[np.float32]]
"""Actions ``(7,)``, one per control step, each computed from the state at its moment."""

OPEN, CLOSED = 1.0, -1.0
REST_YAW = 1.5
_DOWN_ROLL = np.pi
_MOVE_LIMIT, _TURN_LIMIT = 1.0, 1.0
_BLOCK_LENGTHS_M = {"small": 0.04, "middle": 0.056, "big": 0.08}


def wrapped(angle: float, centre: float = 0.0, period: float = 2 * np.pi) -> float:
    """``angle`` plus a multiple of ``period``, at most half a period from ``centre``."""
    return float((angle - centre + period / 2) % period - period / 2 + centre)


class Hand:
    """Reads the simulator behind an environment, and yields actions that move its hand.

    Args:
        env: the unwrapped CALVIN environment.

    Attributes:
        gripper: the command that goes with every action, open (1) or closed (-1).
        tilt: angle in rad by which the hand, at rest yaw, points away from the robot instead of straight down.
    """

    def __init__(self, env: Any) -> None:
        self._env, self._simulator = env, env.simulator
        self.gripper = OPEN
        self.tilt = 0.0

    @property
    def position(self) -> Vector:
        """Position ``(3,)`` of the tool centre point, in metres."""
        position: Vector = self._simulator.robot_obs()[:3]
        return position

    @property
    def yaw(self) -> float:
        """Angle about the vertical, in rad; the fingers move along the line at this angle minus 90°."""
        return float(self._simulator.robot_obs()[5])

    @property
    def opening(self) -> float:
        """Distance between the fingers, in metres."""
        return float(self._simulator.robot_obs()[6])

    @property
    def target_yaw(self) -> float:
        """Yaw of the target, in rad, not wrapped."""
        return float(self._simulator.target_pose()[1][2])

    @property
    def target(self) -> Vector:
        """Position of the target that relative actions move, in metres."""
        position: Vector = self._simulator.target_pose()[0]
        return position

    @property
    def slider(self) -> float:
        """Position of the sliding door, in metres; 0 is right."""
        return float(self._simulator.scene_obs()[SLIDER])

    @property
    def drawer(self) -> float:
        """Position of the drawer, in metres; 0 is closed."""
        return float(self._simulator.scene_obs()[DRAWER])

    @property
    def switch(self) -> float:
        """Position of the switch, in metres; 0 is down."""
        return float(self._simulator.scene_obs()[SWITCH])

    @property
    def led(self) -> bool:
        """Whether the LED is on."""
        return bool(self._simulator.scene_obs()[LED])

    @property
    def lightbulb(self) -> bool:
        """Whether the bulb is on."""
        return bool(self._simulator.scene_obs()[LIGHTBULB])

    def block(self, colour: str) -> Vector:
        """Position and Euler angles ``(6,)`` of a block."""
        pose: Vector = self._simulator.scene_obs()[self._env.scene.block_slice(colour)]
        return pose

    def block_length(self, colour: str) -> float:
        """Longer side of a block, in metres; the other two are 4 cm."""
        name = self._env.scene.blocks[f"block_{colour}"]
        return next(length for size, length in _BLOCK_LENGTHS_M.items() if size in name)

    def held(self, colours: tuple[str, ...] = ("red", "blue", "pink")) -> str | None:
        """Colour of the block between the fingers, or ``None``."""
        near = {colour: float(np.linalg.norm(self.block(colour)[:3] - self.position)) for colour in colours}
        closest = min(near, key=lambda colour: near[colour])
        return closest if near[closest] < 0.05 and self.opening > 0.01 else None

    def link(self, name: str) -> tuple[Vector, Vector]:
        """Lowest and highest corner of one link of the table, in metres."""
        low, high = self._simulator.link_box(name)
        return low, high

    def towards(self, position: ArrayLike, yaw: float | None, speed: float = 1.0) -> NDArray[np.float32]:
        """The action that brings the target closer to a place and to the hand's tilt."""
        here, euler = self._simulator.target_pose()
        action = np.zeros(7)
        step = (np.asarray(position) - here) / METRES_PER_UNIT
        # Along a straight line: the longest component is what the limit cuts.
        action[:3] = step * min(1.0, speed * _MOVE_LIMIT / max(np.abs(step).max(), 1e-9))
        goal = np.array([wrapped(_DOWN_ROLL, euler[0]), -self.tilt, euler[2] if yaw is None else yaw])
        action[3:6] = np.clip((goal - euler) / RADIANS_PER_UNIT, -_TURN_LIMIT, _TURN_LIMIT)
        action[6] = self.gripper
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def go(
        self,
        position: ArrayLike,
        yaw: float | None = None,
        *,
        near_m: float = 0.006,
        speed: float = 1.0,
        steps: int = 60,
    ) -> Motion:
        """Move in a straight line until the tool centre point is ``near_m`` from ``position`` and turned."""
        goal = np.asarray(position, np.float64)
        for _ in range(steps):
            turned = yaw is None or abs(wrapped(self.yaw - yaw)) < 0.05
            if np.linalg.norm(goal - self.position) < near_m and turned:
                return
            yield self.towards(goal, yaw, speed)

    def grip(self, gripper: float, steps: int = 8) -> Motion:
        """Open or close the fingers on the spot."""
        self.gripper = gripper
        place = self.target
        for _ in range(steps):
            yield self.towards(place, None)
