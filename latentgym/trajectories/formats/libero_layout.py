"""What the numbers in HDF5 demonstrations of LIBERO and robomimic mean.

Both come from robosuite and share the outer layout; they differ in names, in which way up images are, and in whether an
observation precedes or follows the action of its row:

- **LIBERO** stores images as OpenGL gives them, bottom row first (``macros_image_convention`` is ``"opengl"``), and row
  j of ``obs`` was taken *after* action j; row j of ``states`` is from *before* it.
- **robomimic** stores upright images, and row j of ``obs`` was taken before action j.

Data in LIBERO's layout that others recorded anew pair rows like robomimic, so the pairing is not assumed but measured:
joint angles in ``obs`` are compared with those in ``states``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.errors import CorruptDataError
from latentgym.trajectories.episode import ActionSpec

CONTROL_HZ = 20.0
JOINTS = {"libero": "joint_states", "robomimic": "robot0_joint_pos"}
"""Observation of the seven joint angles, which are also the first seven positions in a simulator state."""
MAIN_CAMERAS = ("agentview_rgb", "agentview_image", "frontview_image", "shouldercamera0_image")
"""The main camera unless told otherwise: the first of these that there is."""
FRONT_CAMERA = "agentview"
"""The model's camera that the suite's environments call ``"pixels"`` in their stock look."""
_OUTPUT = (0.05, 0.05, 0.05, 0.5, 0.5, 0.5)  # robosuite's OSC_POSE, per unit of action
_ARM, _UNITS = ("x", "y", "z", "rx", "ry", "rz"), ("m", "m", "m", "rad", "rad", "rad")
_ARM_SIZE = 7


def layout_of(observations: Mapping[str, Any]) -> str:
    """``"libero"`` or ``"robomimic"``, by the names of the observations."""
    return "libero" if {"agentview_rgb", "joint_states", "ee_states"} & set(observations) else "robomimic"


def model_camera(name: str) -> str:
    """The model's name of a camera whose images a file calls ``name``.

    >>> model_camera("agentview_rgb"), model_camera("eye_in_hand_rgb"), model_camera("robot0_eye_in_hand_image")
    ('agentview', 'robot0_eye_in_hand', 'robot0_eye_in_hand')
    """
    camera = name.removesuffix("_rgb").removesuffix("_image")
    return "robot0_eye_in_hand" if camera == "eye_in_hand" else camera


def is_camera(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether an observation ``(n, …)`` holds RGB frames."""
    return len(shape) == 4 and shape[-1] == 3 and dtype == np.uint8


def action_spec(size: int, env_kwargs: Mapping[str, Any], label: str) -> ActionSpec:
    """Meaning of the actions, from the controller that the file names.

    Args:
        size: dimensions of the actions: 7 per arm.
        env_kwargs: arguments of the recorded environment; ``controller_configs`` says how actions are scaled.
        label: the file, for errors.

    Raises:
        CorruptDataError: if actions are not those of one or two arms.
    """
    if size not in (_ARM_SIZE, 2 * _ARM_SIZE):
        raise CorruptDataError(f"{label}: expected actions of 7 dimensions, or 14 for two arms, found {size}")
    controller = env_kwargs.get("controller_configs") or {}
    controller = controller[0] if isinstance(controller, list) else controller
    arm = (controller.get("body_parts") or {}).get("right") or controller
    delta = bool(arm.get("control_delta", arm.get("input_type", "delta") == "delta"))
    output = arm.get("output_max") if delta else None
    scale = tuple(float(value) for value in output) if isinstance(output, list) and len(output) == 6 else _OUTPUT
    arms = size // _ARM_SIZE
    names = [f"robot{arm}_{name}" if arms > 1 else name for arm in range(arms) for name in (*_ARM, "gripper")]
    bound = 1.0 if delta else 4.0
    spans = {"translation": range(3), "rotation": range(3, 6), "gripper": range(6, 7)}
    places = {
        part: tuple(arm * _ARM_SIZE + index for arm in range(arms) for index in span) for part, span in spans.items()
    }
    return ActionSpec(
        names=tuple(names),
        frame="world",
        mode="delta" if delta else "absolute",
        units=(*_UNITS, "1") * arms,
        scale=(*(scale if delta else (1.0,) * 6), 1.0) * arms,
        low=(*(-bound,) * 6, -1.0) * arms,
        high=(*(bound,) * 6, 1.0) * arms,
        gripper_close_sign=1,
        **places,
    )


def proprio(observations: Mapping[str, NDArray[Any]], layout: str) -> NDArray[np.float32]:
    """``(n, P)``: per robot position (3, m), two columns of the gripper's rotation (6) and finger positions (2, m).

    The same numbers in the same order as the robosuite and LIBERO environments of the suite observe, so that what was
    learnt from the files can act there. Files without these observations give what low-dimensional ones they have.
    """
    if layout == "libero" and {"ee_pos", "ee_ori", "gripper_states"} <= set(observations):
        rotation = _axis_angle_matrices(observations["ee_ori"])
        return _robot(observations["ee_pos"], rotation, observations["gripper_states"])
    robots = []
    for number in range(2):
        names = [f"robot{number}_{part}" for part in ("eef_pos", "eef_quat", "gripper_qpos")]
        if set(names) <= set(observations):
            position, quaternion, fingers = (np.asarray(observations[name], np.float64) for name in names)
            robots.append(_robot(position, _quaternion_matrices(quaternion), fingers))
    return np.concatenate(robots, axis=1) if robots else _flat(observations)


def proprio_names(observations: Mapping[str, tuple[int, ...]], layout: str) -> list[str]:
    """Names of the observations that :func:`proprio` reads, given the shapes of all.

    >>> proprio_names({"ee_pos": (9, 3), "ee_ori": (9, 3), "gripper_states": (9, 2), "x": (9, 1)}, "libero")
    ['ee_pos', 'ee_ori', 'gripper_states']
    """
    wanted = ["ee_pos", "ee_ori", "gripper_states"]
    if layout == "robomimic":
        parts = ("eef_pos", "eef_quat", "gripper_qpos")
        robots = [[f"robot{number}_{part}" for part in parts] for number in range(2)]
        wanted = [name for names in robots if set(names) <= set(observations) for name in names]
    if wanted and set(wanted) <= set(observations):
        return wanted
    return sorted(name for name, shape in observations.items() if len(shape) == 2 and name != "object")


def _robot(position: NDArray[Any], body: NDArray[np.float64], fingers: NDArray[Any]) -> NDArray[np.float32]:
    """``(n, 11)``; files hold the orientation of the hand's body, a quarter turn off that of the gripper's site."""
    return np.asarray(np.concatenate([position, -body[:, :, 1], body[:, :, 0], fingers], axis=1), np.float32)


def _flat(observations: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    rows = [np.asarray(values, np.float32) for values in observations.values()]
    return np.concatenate(rows, axis=1) if rows else np.zeros((0, 0), np.float32)


def _axis_angle_matrices(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """Rotation matrices ``(n, 3, 3)`` of axis-angle vectors ``(n, 3)``."""
    values = np.asarray(vectors, np.float64)
    angle = np.linalg.norm(values, axis=1, keepdims=True)
    axis = values / np.where(angle == 0, 1.0, angle)
    return _quaternion_matrices(np.concatenate([axis * np.sin(angle / 2), np.cos(angle / 2)], axis=1))


def _quaternion_matrices(quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrices ``(n, 3, 3)`` of quaternions ``(n, 4)`` in the order x, y, z, w."""
    x, y, z, w = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), 2, 0)
