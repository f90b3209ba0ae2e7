"""What CALVIN's numbers mean: cameras, action spaces, state vectors, scenes (Mees et al., 2022, arXiv 2112.03227)."""

from __future__ import annotations

import math
from typing import Literal

from latentgym.errors import UnknownNameError
from latentgym.trajectories.episode import ActionSpec

CONTROL_HZ = 30.0
ROBOT_OBS = "robot_obs"
SCENE_OBS = "scene_obs"
ROBOT_OBS_SIZE = 15
SCENE_OBS_SIZE = 24
CAMERAS = ("rgb_static", "rgb_gripper")
EXTRAS = ("depth_static", "depth_gripper", "rgb_tactile", "depth_tactile")
SCENES = ("A", "B", "C", "D")
BLOCK_ORDER = {
    "A": ("pink", "blue", "red"),
    "B": ("red", "blue", "pink"),
    "C": ("blue", "red", "pink"),
    "D": ("red", "blue", "pink"),
}
"""Order of the three blocks in ``scene_obs``, which differs from scene to scene."""

ROBOT_OBS_NAMES = (
    *(f"tcp_{name}" for name in ("x", "y", "z", "euler_x", "euler_y", "euler_z")),
    "gripper_width",
    *(f"joint_{index}" for index in range(7)),
    "gripper_action",
)
"""Metres, radians; the gripper action is -1 (close) or 1 (open)."""

ActionSpace = Literal["rel_actions", "actions"]
_NAMES = ("x", "y", "z", "euler_x", "euler_y", "euler_z", "gripper")
_UNITS = ("m", "m", "m", "rad", "rad", "rad", "1")

RELATIVE_ACTIONS = ActionSpec(
    names=_NAMES,
    frame="world",
    mode="delta",
    units=_UNITS,
    scale=(0.02, 0.02, 0.02, 0.05, 0.05, 0.05, 1.0),
    low=(-1.0,) * 7,
    high=(1.0,) * 7,
    translation=(0, 1, 2),
    rotation=(3, 4, 5),
    gripper=(6,),
    gripper_close_sign=-1,
)
"""``rel_actions``: world-frame displacements, times 50 per metre and 20 per radian, clipped to ±1."""

ABSOLUTE_ACTIONS = ActionSpec(
    names=_NAMES,
    frame="world",
    mode="absolute",
    units=_UNITS,
    scale=(1.0,) * 7,
    # The arm's reach; nothing is clipped in the data.
    low=(-2.0, -2.0, -2.0, -math.pi, -math.pi, -math.pi, -1.0),
    high=(2.0, 2.0, 2.0, math.pi, math.pi, math.pi, 1.0),
    translation=(0, 1, 2),
    rotation=(3, 4, 5),
    gripper=(6,),
    gripper_close_sign=-1,
)
"""``actions``: the pose that the tool centre point is sent to, in the world frame."""

ACTION_SPECS: dict[str, ActionSpec] = {"rel_actions": RELATIVE_ACTIONS, "actions": ABSOLUTE_ACTIONS}


def action_spec(space: str) -> ActionSpec:
    """Meaning of ``"rel_actions"`` or ``"actions"``.

    Raises:
        UnknownNameError: if ``space`` is neither.
    """
    try:
        return ACTION_SPECS[space]
    except KeyError:
        raise UnknownNameError("CALVIN action space", space, ACTION_SPECS) from None


def env_id_of(scenes: set[str]) -> str:
    """Id of the environment that data of these scenes stand for: ``latentgym/CalvinD-v0`` where there is one scene.

    >>> env_id_of({"D"}), env_id_of({"A", "B"}), env_id_of({""})
    ('latentgym/CalvinD-v0', 'calvin-AB', 'calvin')
    """
    if len(scenes) == 1 and "" not in scenes:
        return f"latentgym/Calvin{next(iter(scenes))}-v0"
    letters = "".join(sorted(scenes))
    return f"calvin-{letters}" if letters else "calvin"
