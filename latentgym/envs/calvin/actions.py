"""What CALVIN's actions mean, and which are refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentgym.envs.calvin.robot import METRES_PER_UNIT, RADIANS_PER_UNIT
from latentgym.envs.contract import EnvContract
from latentgym.errors import LatentGymError
from latentgym.trajectories.episode import ActionSpec

_NAMES = ("x", "y", "z", "euler_x", "euler_y", "euler_z", "gripper")
_UNITS = ("m", "m", "m", "rad", "rad", "rad", "1")
_GROUPS: dict[str, Any] = {"translation": (0, 1, 2), "rotation": (3, 4, 5), "gripper": (6,), "gripper_close_sign": -1}

ACTION_SPECS = {
    "relative": ActionSpec(
        names=_NAMES,
        frame="world",
        mode="delta",
        units=_UNITS,
        scale=(METRES_PER_UNIT,) * 3 + (RADIANS_PER_UNIT,) * 3 + (1.0,),
        low=(-1.0,) * 7,
        high=(1.0,) * 7,
        **_GROUPS,
    ),
    "absolute": ActionSpec(
        names=_NAMES,
        frame="world",
        mode="absolute",
        units=_UNITS,
        scale=(1.0,) * 7,
        low=(-1.0, -1.0, 0.0, *(-math.pi,) * 3, -1.0),
        high=(1.0, 1.0, 1.5, *(math.pi,) * 3, 1.0),
        **_GROUPS,
    ),
}


def checked_action(action: ArrayLike, contract: EnvContract) -> NDArray[np.floating[Any]]:
    """``action`` ``(7,)`` in its own precision, which the original computes in as well.

    Raises:
        LatentGymError: if it has the wrong shape, is not finite or leaves the action space.
    """
    values = np.asarray(action)
    values = values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)
    spec = contract.action_spec
    if values.shape != (len(spec.low),):
        raise LatentGymError(f"{contract.env_id}: an action has shape ({len(spec.low)},), found {values.shape}")
    if not np.isfinite(values).all():
        raise LatentGymError(f"{contract.env_id}: action {values.tolist()} holds NaN or infinite values")
    # The limits as the action space has them, so that every sample of it is accepted.
    low, high = np.array(spec.low, np.float32), np.array(spec.high, np.float32)
    if (values < low).any() or (values > high).any():
        limits = "-1 to 1" if spec.mode == "delta" else f"{low.tolist()} to {high.tolist()}"
        raise LatentGymError(
            f"{contract.env_id}: action {values.tolist()} leaves the action space, {limits}; clip it or check its units"
        )
    return values
