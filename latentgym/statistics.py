"""Intervals, paired tests, rank statistics and bootstraps that probes, rollouts and studies share.

Statistics over encoders (:func:`spearman`, :func:`mean_maximum_rank_violation` …) work along the last axis and accept
leading axes, so that thousands of bootstrap replicates are one call; a pair with NaN in it is left out, and an
undefined result is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from latentgym.errors import LatentGymError
from latentgym.seeding import numpy_generator

Floats = NDArray[np.float64]
_CACHED_PAIRS = 2**15


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of one proportion (Wilson 1927), without continuity correction.

    Args:
        successes: number of successes, 0 … ``trials``.
        trials: number of trials, at least 1.
        level: confidence level, between 0 and 1.

    Returns:
        Lower and upper end, both in [0, 1].

    Raises:
        LatentGymError: on counts or a level outside those ranges.

    >>> [round(end, 3) for end in wilson_interval(8, 10)]
    [0.49, 0.943]
    """
    if not (trials >= 1 and 0 <= successes <= trials):
        raise LatentGymError(f"expected 0 <= successes <= trials and trials >= 1, found {successes} of {trials}")
    _check_level(level)
    interval = scipy.stats.binomtest(int(successes), int(trials)).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def newcombe_interval(
    first: ArrayLike, second: ArrayLike, *, paired: bool = True, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the difference between two success rates, ``mean(first) - mean(second)``.

    Independent: hybrid score interval (Newcombe 1998, Stat. Med. 17:873, method 10). Paired: the same with the
    continuity-corrected correlation of the pairs (Newcombe 1998, Stat. Med. 17:2635, method 10).

    Args:
        first: outcomes (0 or 1), one per trial.
        second: outcomes; for ``paired``, entry i was obtained on the same initial state as ``first[i]``.
        paired: whether the trials are paired, as they are where policies share a list of seeds.
        level: confidence level.

    Raises:
        LatentGymError: on outcomes that are not 0 or 1, no outcomes, or paired lists of unequal length.
    """
    x, y = _outcomes(first), _outcomes(second)
    if paired:
        _check_paired(x, y)
    p, q = float(x.mean()), float(y.mean())
    (p_low, p_high), (q_low, q_high) = (wilson_interval(int(v.sum()), v.size, level) for v in (x, y))
    phi = _pair_correlation(x, y) if paired else 0.0

    def half_width(a: float, b: float) -> float:
        return float(np.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0)))

    return p - q - half_width(p - p_low, q_high - q), p - q + half_width(p_high - p, q - q_low)


def _pair_correlation(x: NDArray[np.bool_], y: NDArray[np.bool_]) -> float:
    """Continuity-corrected phi of a paired 2 × 2 table; 0 where a margin is empty."""
    both, only_x, only_y, neither = (int(v.sum()) for v in (x & y, x & ~y, ~x & y, ~x & ~y))
    margins = float((both + only_x) * (only_y + neither) * (both + only_y) * (only_x + neither))
    if margins == 0:
        return 0.0
    excess = float(both * neither - only_x * only_y)
    return (max(excess - x.size / 2, 0.0) if excess > 0 else excess) / float(np.sqrt(margins))


def mcnemar(first: ArrayLike, second: ArrayLike) -> float:
    """Exact two-sided p-value that two policies succeed equally often on the same initial states (McNemar 1947).

    Args:
        first: outcomes (0 or 1) of one policy.
        second: outcomes of the other on the same initial states, in the same order.
    """
    x, y = _outcomes(first), _outcomes(second)
    _check_paired(x, y)
    only_x, only_y = int((x & ~y).sum()), int((~x & y).sum())
    return 1.0 if only_x + only_y == 0 else float(scipy.stats.binomtest(only_x, only_x + only_y).pvalue)


def barnard(first: ArrayLike, second: ArrayLike) -> float:
    """Barnard's exact two-sided p-value that two independent success rates are equal.

    Args:
        first: outcomes (0 or 1) of one policy.
        second: outcomes of the other, on initial states of its own.
    """
    x, y = _outcomes(first), _outcomes(second)
    table = [[int(x.sum()), int(y.sum())], [int((~x).sum()), int((~y).sum())]]
    return 1.0 if 0 in (sum(table[0]), sum(table[1])) else float(scipy.stats.barnard_exact(table).pvalue)


def holm(p_values: ArrayLike) -> Floats:
    """P-values adjusted for their number by Holm's step-down rule (Holm 1979).

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise LatentGymError("holm: expected a list of p-values between 0 and 1")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.minimum(p[order] * np.arange(p.size, 0, -1), 1.0))
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return adjusted


def interquartile_mean(values: ArrayLike) -> float:
    """Mean of the middle half, quarter weights at the ends included (Agarwal et al. 2021)."""
    x = np.sort(np.asarray(values, dtype=np.float64).ravel())
    if x.size == 0:
        raise LatentGymError("interquartile_mean: expected at least one value")
    edges = np.arange(x.size + 1) / x.size
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return float((x * weights).sum() / weights.sum())


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
    arrays = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (x, y, *covariates)))
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
    s, a, b = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (proxy, choosing, measuring)))
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


def hierarchical_bootstrap(
    levels: Sequence[Sequence[Any]], replicates: int, generator: np.random.Generator
) -> NDArray[np.intp]:
    """Indices that resample nested clusters with replacement, the outermost first.

    Every level is resampled within the cluster drawn above it (families, then the pretraining runs of each family);
    items that agree on all levels (checkpoints of one run) are kept together.

    Args:
        levels: labels per item, one sequence of length N for each level, outermost first.
        replicates: number of resamples R.
        generator: source of all randomness.

    Returns:
        ``(R, M)`` intp: items of each resample, padded on the right with -1 where clusters differ in size.
    """
    labels = [tuple(level) for level in levels]
    if not labels or len({len(level) for level in labels}) != 1 or not labels[0]:
        raise LatentGymError(
            "hierarchical_bootstrap: expected one label per item on every level, and at least one item"
        )
    drawn = _draw(np.arange(len(labels[0])), labels, replicates, generator)
    drawn = np.take_along_axis(drawn, np.argsort(drawn < 0, axis=1, kind="stable"), axis=1)
    return drawn[:, : int((drawn >= 0).sum(axis=1).max(initial=1))]


def _draw(
    items: NDArray[np.intp], levels: list[tuple[Any, ...]], count: int, generator: np.random.Generator
) -> NDArray[np.intp]:
    if not levels:
        return np.tile(items, (count, 1))
    names = list(dict.fromkeys(levels[0][i] for i in items))
    clusters = [np.array([i for i in items if levels[0][i] == name], dtype=np.intp) for name in names]
    choice = generator.integers(len(clusters), size=(count, len(clusters)))
    blocks = [_draw(cluster, levels[1:], int((choice == c).sum()), generator) for c, cluster in enumerate(clusters)]
    width = max(block.shape[1] for block in blocks)
    drawn = np.full((count, len(clusters), width), -1, dtype=np.intp)
    for c, block in enumerate(blocks):
        drawn[choice == c, : block.shape[1]] = block
    return drawn.reshape(count, -1)


def crossed_bootstrap_means(
    outcomes: ArrayLike, replicates: int, *, rows: np.random.Generator, columns: np.random.Generator
) -> Floats:
    """Means of resampled rows (policy seeds) crossed with resampled columns (initial states).

    Encoders stay paired over initial states when each call gets a ``columns`` generator of the same seed.

    Args:
        outcomes: ``(P, N)`` outcomes.
        replicates: number of resamples R.
        rows: generator that resamples the P rows.
        columns: generator that resamples the N columns.

    Returns:
        ``(R,)`` float64.
    """
    table = np.asarray(outcomes, dtype=np.float64)
    chosen_rows = _counts(rows, table.shape[0], replicates)
    chosen_columns = _counts(columns, table.shape[1], replicates)
    return np.asarray(((chosen_rows @ table) * chosen_columns).sum(axis=1) / table.size)


def crossed_bootstrap_interval(
    outcomes: ArrayLike, *, seed: int = 0, replicates: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean success over policy seeds and initial states, both resampled.

    Args:
        outcomes: ``(P, N)`` outcomes of P policy seeds on the same N initial states.
        seed: seed of the bootstrap.
        replicates: number of resamples.
        level: confidence level.
    """
    rows, columns = (numpy_generator(seed, "crossed_bootstrap", side) for side in ("rows", "columns"))
    means = crossed_bootstrap_means(outcomes, replicates, rows=rows, columns=columns)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def percentile_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float] | tuple[None, None]:
    """Percentile interval of bootstrap replicates; ``(None, None)`` where fewer than half of them are defined."""
    _check_level(level)
    x = np.asarray(values, dtype=np.float64).ravel()
    defined = x[np.isfinite(x)]
    if defined.size == 0 or defined.size < x.size / 2:
        return None, None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _counts(generator: np.random.Generator, size: int, replicates: int) -> Floats:
    """How often each of ``size`` items is drawn, per replicate."""
    return generator.multinomial(size, np.full(size, 1 / size), size=replicates).astype(np.float64)


def _pairs(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Both arrays broadcast, zero where either is missing, and the mask of whole pairs."""
    a, b = np.broadcast_arrays(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64))
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


def _outcomes(values: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0 or not np.isin(array, (0, 1)).all():
        raise LatentGymError(f"expected a non-empty list of outcomes that are 0 or 1, found shape {array.shape}")
    return array.astype(np.bool_)


def _check_paired(x: NDArray[np.bool_], y: NDArray[np.bool_]) -> None:
    if x.size != y.size:
        raise LatentGymError(f"paired outcomes must be equally many, found {x.size} and {y.size}")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise LatentGymError(f"a confidence level lies between 0 and 1, found {level}")


def _plain(values: NDArray[Any]) -> Any:
    """A float for a 0-D array."""
    return float(values) if values.ndim == 0 else values
