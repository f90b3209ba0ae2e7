"""Scripted experts for the tabletop tasks: memoryless and unimodal functions of the state, so that they can be cloned.

Each picks a place to go to and moves there with a velocity proportional to the distance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from latentgym.envs.tabletop.scene import WORKSPACE
from latentgym.envs.tabletop.tasks import Intercept, Snapshot, Vector

LOW_Z = WORKSPACE[2][0]
FULL_SPEED_DISTANCE_M = 0.12
"""Distance at which the commanded velocity reaches its limit."""
SLIPPED_M = 0.02
"""How far the puck lies on the wrong side of the pocket when a push has failed."""

MOUTH_M = 0.045
"""Distance from the pocket's centre to its mouth, where an oblique puck must not meet a fingertip."""
CAUGHT_M = 0.035
"""A puck closer than this to the pocket's centre, along either axis, is inside."""
APPROACH_SPEED = 0.2
"""Slower pucks (m/s) are not on their way to the line."""


def _towards(target: Vector, position: Vector) -> Vector:
    return np.clip((target - position) / FULL_SPEED_DISTANCE_M, -1.0, 1.0)


def reach_action(scene: Snapshot) -> Vector:
    """Straight to the target."""
    return _towards(scene.goal, scene.gripper)


def push_action(scene: Snapshot) -> Vector:
    """Come from behind the puck, always from the side away from the camera, then carry it to the pad in the pocket."""
    offset = scene.puck - scene.gripper[:2]
    if offset[1] > SLIPPED_M:
        return _towards(np.array([scene.puck[0], scene.puck[1] + 0.09, 0.1]), scene.gripper)
    approach = _towards(np.array([scene.puck[0], scene.puck[1] + 0.085, LOW_Z]), scene.gripper)
    remaining = np.clip((scene.goal[:2] - scene.puck) / FULL_SPEED_DISTANCE_M, -1.0, 1.0)
    aligned = np.exp(-((offset[0] / 0.025) ** 2)) * np.clip((0.04 - scene.gripper[2]) / 0.015, 0.0, 1.0)
    engaged = np.clip((0.045 + offset[1]) / 0.02, 0.0, 1.0)
    return np.array(
        [
            (1 - engaged) * approach[0] + engaged * remaining[0],
            (1 - aligned) * (1 - engaged) * approach[1] + max(aligned, engaged) * min(remaining[1], 0.0),
            approach[2],
        ]
    )


def intercept_action(scene: Snapshot) -> Vector:
    """Wait where the puck will enter the pocket on the line; once inside follow it, once past hold still."""
    offset = scene.puck - scene.gripper[:2]
    if np.abs(offset).max() < CAUGHT_M:
        return _towards(np.array([scene.gripper[0], scene.puck[1], LOW_Z]), scene.gripper)
    remaining = Intercept.line_y - MOUTH_M - scene.puck[1]
    approaching = scene.puck_velocity[1] > APPROACH_SPEED and remaining > -MOUTH_M
    time_left_s = remaining / scene.puck_velocity[1] if approaching else 0.0
    crossing = scene.puck[0] + scene.puck_velocity[0] * time_left_s if approaching else scene.gripper[0]
    return _towards(np.array([np.clip(crossing, -0.25, 0.25), Intercept.line_y, LOW_Z]), scene.gripper)


ACTIONS: dict[str, Callable[[Snapshot], Vector]] = {
    "Reach": reach_action,
    "Push": push_action,
    "Intercept": intercept_action,
}


class TabletopExpert:
    """The scripted expert of one tabletop task; deterministic, it draws nothing from its generator."""

    def __init__(self, task: str) -> None:
        self._action = ACTIONS[task]

    def reset(self, env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> None:
        """Nothing to prepare: the expert has no memory."""

    def act(self, env: gymnasium.Env[Any, Any], observation: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The action ``(3,)`` float32 in [-1, 1] for the current simulator state."""
        scene: Snapshot = env.get_wrapper_attr("snapshot")()
        return np.clip(self._action(scene), -1.0, 1.0).astype(np.float32)
