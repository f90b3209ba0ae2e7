"""What CALVIN's actions mean, and which are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentgym.envs.contract import EnvContract
from latentgym.errors import LatentGymError
from latentgym.trajectories.formats import calvin_layout

ACTION_SPECS = {"relative": calvin_layout.RELATIVE_ACTIONS, "absolute": calvin_layout.ABSOLUTE_ACTIONS}
"""The published data's own, so that policies trained on them fit."""


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
