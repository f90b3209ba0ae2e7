"""The front of encoders that no other beats in both fidelity and action content, and how sure membership is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentgym.errors import LatentGymError


def pareto_front(first: ArrayLike, second: ArrayLike) -> NDArray[np.bool_]:
    """Which points no other dominates: at least as good in both coordinates and better in one; larger is better.

    Args:
        first: ``(…, N)`` such as PSNR; NaN marks a missing point, which is not on the front and dominates none.
        second: ``(…, N)`` such as action R².

    Returns:
        ``(…, N)`` bool.

    >>> pareto_front([1, 2, 3, 2], [3, 2, 1, 1]).tolist()
    [True, True, True, False]
    """
    x, y = np.broadcast_arrays(np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64))
    missing = np.isnan(x) | np.isnan(y)
    x, y = np.where(missing, -np.inf, x), np.where(missing, -np.inf, y)
    at_least = (x[..., None, :] >= x[..., :, None]) & (y[..., None, :] >= y[..., :, None])
    better = (x[..., None, :] > x[..., :, None]) | (y[..., None, :] > y[..., :, None])
    dominated: NDArray[Any] = (at_least & better).any(axis=-1)
    return np.asarray(~dominated & ~missing)


def pareto_membership(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Share of bootstrap replicates in which each encoder is on the front.

    Args:
        first: ``(R, N)`` replicates of one measure of N encoders, such as PSNR; paired across encoders.
        second: ``(R, N)`` replicates of the other, such as action R².

    Returns:
        ``(N,)`` float64 in [0, 1].

    Raises:
        LatentGymError: on other shapes or no replicate.
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.ndim != 2 or x.shape != y.shape or not x.size:
        raise LatentGymError(f"pareto_membership: expected two arrays of shape (R, N), found {x.shape} and {y.shape}")
    share: NDArray[np.float64] = pareto_front(x, y).mean(axis=0)
    return share
