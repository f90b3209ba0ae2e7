"""What the statistics ask of their arguments."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentgym.errors import LatentGymError


def outcomes(values: ArrayLike) -> NDArray[np.bool_]:
    """Outcomes as booleans; raises on anything but a non-empty list of 0 and 1."""
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0 or not np.isin(array, (0, 1)).all():
        raise LatentGymError(f"expected a non-empty list of outcomes that are 0 or 1, found shape {array.shape}")
    return array.astype(np.bool_)


def check_paired(x: NDArray[np.bool_], y: NDArray[np.bool_]) -> None:
    """Raise where paired lists differ in length."""
    if x.size != y.size:
        raise LatentGymError(f"paired outcomes must be equally many, found {x.size} and {y.size}")


def check_level(level: float) -> None:
    """Raise where a confidence level is not a share."""
    if not 0 < level < 1:
        raise LatentGymError(f"a confidence level lies between 0 and 1, found {level}")
