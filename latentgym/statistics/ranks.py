"""How well one measure ranks what another measures: correlations, rank violations, regret, reliability.

They work along the last axis and accept leading axes, so that thousands of bootstrap replicates are one call; a pair
with NaN in it is left out, and an undefined result is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from latentgym.errors import LatentGymError

Floats = NDArray[np.float64]
_CACHED_PAIRS = 2**15


def pearson(x: ArrayLike, y: ArrayLike) -> Any:
    """Pearson's r along the last axis.

    Args:
        x: ``(…, N)`` values; NaN marks a missing one.
        y: ``(…, N)`` values, broadcast against ``x``.

    Returns:
        ``(…)`` float64 (a float for 1-D input); NaN where fewer than two pairs are left or one side is constant.
    """
    a, b, mask = _pairs(x, y)
    (a, a_varies), (b, b_varies) = _centred(a, mask), _centred(b, mask)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (a * b).sum(axis=-1) / np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    return _plain(np.where(a_varies & b_varies, np.clip(r, -1.0, 1.0), np.nan))


def spearman(x: ArrayLike, y: ArrayLike) -> Any:
    """Spearman's ρ along the last axis, ties sharing their mean rank; see :func:`pearson` for shapes and NaN."""
    a, b, mask = _pairs(x, y)
    return pearson(_ranks(a, mask), _ranks(b, mask))


def kendall(x: ArrayLike, y: ArrayLike) -> Any:
    """Kendall's τ-b along the last axis; see :func:`pearson` for shapes and NaN."""
    return _blockwise(_kendall, x, y)


def _kendall(a: Floats, b: Floats, mask: NDArray[np.bool_]) -> Floats:
    valid = mask[..., :, None] & mask[..., None, :]
    sign_a, sign_b = (_order(v) * valid for v in (a, b))
    pairs = ((sign_a, sign_b), (sign_a, sign_a), (sign_b, sign_b))
    both, only_a, only_b = ((s * t).sum(axis=(-2, -1), dtype=np.float64) for s, t in pairs)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(only_a * only_b > 0, both / np.sqrt(only_a * only_b), np.nan))


def partial_correlation(x: ArrayLike, y: ArrayLike, covariates: Sequence[ArrayLike]) -> Any:
    """Spearman's partial ρ of ``x`` and ``y`` given ``covariates``, along the last axis.

    A covariate that does not vary, or that those before it determine, is left out.

    Args:
        x: ``(…, N)``.
        y: ``(…, N)``.
        covariates: any number of ``(…, N)`` arrays; an encoder that lacks one of them is left out.
    """
    arrays = _together(x, y, *covariates)
    mask = np.logical_and.reduce([np.isfinite(v) for v in arrays])
    ranks = [_ranks(v, mask) for v in arrays]
    size = len(ranks)
    r = {(i, j): np.asarray(pearson(ranks[i], ranks[j])) for i in range(size) for j in range(i + 1, size)}
    for k in range(size - 1, 1, -1):
        for i in range(k):
            for j in range(i + 1, k):
                given_i, given_j = (np.nan_to_num(r[m, k]) for m in (i, j))
                rest = (1 - given_i**2) * (1 - given_j**2)
                with np.errstate(invalid="ignore", divide="ignore"):
                    partial = (r[i, j] - given_i * given_j) / np.sqrt(rest)
                r[i, j] = np.where(rest > 1e-9, np.clip(partial, -1.0, 1.0), np.nan)
    return _plain(r[0, 1])


def mean_maximum_rank_violation(*, proxy: ArrayLike, success: ArrayLike) -> Any:
    """MMRV (SIMPLER, arXiv 2405.05941): mean over i of the largest ``|R_i - R_j|`` over j that the proxy ranks wrongly.

    ``R`` is the success, ``S`` the proxy, and a pair is wrong where ``(S_i > S_j) != (R_i > R_j)``; 0 is best.

    Args:
        proxy: ``(…, N)``.
        success: ``(…, N)``, whose unit the result has.

    >>> mean_maximum_rank_violation(proxy=[1, 2, 3], success=[0.1, 0.9, 0.5])
    0.26666666666666666
    """
    return _blockwise(_rank_violation, proxy, success)


def _rank_violation(proxy: Floats, success: Floats, mask: NDArray[np.bool_]) -> Floats:
    gap = success[..., :, None] - success[..., None, :]
    wrong = (proxy[..., :, None] > proxy[..., None, :]) != (gap > 0)
    wrong &= mask[..., :, None] & mask[..., None, :]
    worst = (np.abs(gap, out=gap) * wrong).max(axis=-1, initial=0.0).sum(axis=-1)
    count = mask.sum(axis=-1)
    return np.asarray(np.where(count > 1, worst / np.maximum(count, 1), np.nan))


def regret(*, proxy: ArrayLike, choosing: ArrayLike, measuring: ArrayLike) -> Any:
    """Success lost by picking the encoder with the best proxy instead of the one with the best success.

    The best encoder is chosen by one half of the rollouts and both are measured on the other, which removes the
    optimism of a maximum over noisy rates; a small negative value is therefore possible. Ties share the choice.

    Args:
        proxy: ``(…, N)``.
        choosing: ``(…, N)`` success on the half that chooses the best encoder.
        measuring: ``(…, N)`` success on the other half.
    """
    s, a, b = _together(proxy, choosing, measuring)
    mask = np.isfinite(s) & np.isfinite(a) & np.isfinite(b)
    picked = []
    for chooser in (a, s):
        best = np.where(mask, chooser, -np.inf)
        tied = (best == best.max(axis=-1, keepdims=True, initial=-np.inf)) & mask
        picked.append((np.where(mask, b, 0.0) * tied).sum(axis=-1) / np.maximum(tied.sum(axis=-1), 1))
    return _plain(np.where(mask.sum(axis=-1) > 1, picked[0] - picked[1], np.nan))


def split_half_reliability(first: ArrayLike, second: ArrayLike) -> Any:
    """Reliability of the whole from the correlation of its halves along the last axis (Spearman 1910, Brown 1910).

    Args:
        first: ``(…, N)`` score of each encoder on one half of the rollouts.
        second: ``(…, N)`` score on the other half.
    """
    r = np.asarray(pearson(first, second))
    with np.errstate(invalid="ignore", divide="ignore"):
        return _plain(np.where(r > -1 + 1e-12, 2 * r / (1 + r), np.nan))


def _together(*values: ArrayLike) -> list[Floats]:
    """Arrays broadcast over their leading axes; the last one, of what is ranked, must be equally long in all.

    Raises:
        LatentGymError: if it is not.
    """
    arrays = [np.asarray(value, dtype=np.float64) for value in values]
    lengths = [array.shape[-1] if array.ndim else 0 for array in arrays]
    if len(set(lengths)) > 1 or not all(array.ndim for array in arrays):
        raise LatentGymError(f"rank statistics compare equally many values on every side, found {lengths}")
    return [np.asarray(array) for array in np.broadcast_arrays(*arrays)]


def _pairs(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Both arrays broadcast, zero where either is missing, and the mask of whole pairs."""
    a, b = _together(x, y)
    mask = np.isfinite(a) & np.isfinite(b)
    return np.where(mask, a, 0.0), np.where(mask, b, 0.0), mask


def _blockwise(statistic: Callable[[Floats, Floats, NDArray[np.bool_]], Floats], x: ArrayLike, y: ArrayLike) -> Any:
    """A statistic of all pairs of entries, over leading axes in blocks whose pairs fit into a core's cache."""
    a, b, mask = _pairs(x, y)
    shape, size = a.shape[:-1], a.shape[-1]
    a, b, mask = a.reshape(-1, size), b.reshape(-1, size), mask.reshape(-1, size)
    block = max(1, _CACHED_PAIRS // max(size, 1) ** 2)
    starts = range(0, len(a), block)
    parts = [statistic(a[i : i + block], b[i : i + block], mask[i : i + block]) for i in starts]
    return _plain(np.concatenate(parts).reshape(shape))


def _centred(values: Floats, mask: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.bool_]]:
    """Values minus their mean over ``mask``, scaled to at most 1, and whether they vary at all."""
    count = np.maximum(mask.sum(axis=-1, keepdims=True), 1)
    span = np.abs(values).max(axis=-1, keepdims=True, initial=0.0)
    scaled = values / np.where(span > 0, span, 1.0)
    centred = np.where(mask, scaled - scaled.sum(axis=-1, keepdims=True) / count, 0.0)
    scale = np.abs(centred).max(axis=-1, keepdims=True, initial=0.0)
    # A constant differs from its computed mean by rounding alone, which must not pass for variation.
    varies = scale > 1e-12
    return centred / np.where(varies, scale, 1.0), varies[..., 0]


def _ranks(values: Floats, mask: NDArray[np.bool_]) -> Floats:
    """Mean ranks along the last axis among the entries of ``mask``; NaN elsewhere."""
    ranks = scipy.stats.rankdata(np.where(mask, values, np.inf), axis=-1)
    return np.where(mask, ranks, np.nan)


def _order(values: Floats) -> NDArray[np.int8]:
    """Sign of each pairwise difference, ``(…, N, N)``."""
    greater = values[..., :, None] > values[..., None, :]
    return greater.view(np.int8) - np.swapaxes(greater, -2, -1).view(np.int8)


def _plain(values: NDArray[Any]) -> Any:
    """A float for a 0-D array."""
    return float(values) if values.ndim == 0 else values
