"""Success rates: intervals of one rate and of differences, exact tests, and the correction for many tests."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from latentgym.errors import LatentGymError
from latentgym.statistics.checks import check_level, check_paired, outcomes


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
    check_level(level)
    interval = scipy.stats.binomtest(int(successes), int(trials)).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


@overload
def newcombe_interval(
    first: ArrayLike, second: ArrayLike, *, paired: bool = True, level: float = 0.95
) -> tuple[float, float]: ...


@overload
def newcombe_interval(
    first: int, trials_of_first: int, second: int, trials_of_second: int, /, *, level: float = 0.95
) -> tuple[float, float]: ...


def newcombe_interval(
    first: Any, second: Any, *counts: Any, paired: bool = True, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the difference between two success rates, ``mean(first) - mean(second)``.

    Independent: hybrid score interval (Newcombe 1998, Stat. Med. 17:873, method 10). Paired: the same with the
    continuity-corrected correlation of the pairs (Newcombe 1998, Stat. Med. 17:2635, method 10).

    Either two lists of outcomes, or four counts of independent trials: successes and trials of the first, then of the
    second.

    Args:
        first: outcomes (0 or 1), one per trial.
        second: outcomes; for ``paired``, entry i was obtained on the same initial state as ``first[i]``.
        counts: the rest of the four counts, where counts are given.
        paired: whether the trials are paired, as they are where policies share a list of seeds; counts never are.
        level: confidence level.

    Raises:
        LatentGymError: on outcomes that are not 0 or 1, no outcomes, impossible counts, or paired lists of unequal
            length.

    >>> [round(end, 4) for end in newcombe_interval(56, 70, 48, 80)]
    [0.0524, 0.3339]
    """
    if counts:
        paired, (x, y) = False, _outcomes_of_counts(first, second, *counts)
    else:
        x, y = outcomes(first), outcomes(second)
    if paired:
        check_paired(x, y)
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


def _outcomes_of_counts(*counts: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Outcomes with the given successes and trials of two independent samples."""
    if len(counts) != 4 or not all(isinstance(count, int | np.integer) for count in counts):
        raise LatentGymError(f"expected two lists of outcomes, or successes and trials twice, found {counts}")
    for successes, trials in (counts[:2], counts[2:]):
        if not (trials >= 1 and 0 <= successes <= trials):
            raise LatentGymError(f"expected 0 <= successes <= trials and trials >= 1, found {successes} of {trials}")
    return np.arange(counts[1]) < counts[0], np.arange(counts[3]) < counts[2]


def mcnemar(first: ArrayLike, second: ArrayLike) -> float:
    """Exact two-sided p-value that two policies succeed equally often on the same initial states (McNemar 1947).

    Either two lists of outcomes, or the two counts of initial states on which the one succeeded and the other did not.

    Args:
        first: outcomes (0 or 1) of one policy.
        second: outcomes of the other on the same initial states, in the same order.

    >>> mcnemar(9, 1)
    0.021484375
    """
    if np.ndim(first) == np.ndim(second) == 0:
        only_x, only_y = int(np.asarray(first)), int(np.asarray(second))
        if min(only_x, only_y) < 0:
            raise LatentGymError(f"mcnemar: expected counts of at least 0, found {only_x} and {only_y}")
    else:
        x, y = outcomes(first), outcomes(second)
        check_paired(x, y)
        only_x, only_y = int((x & ~y).sum()), int((~x & y).sum())
    return 1.0 if only_x + only_y == 0 else float(scipy.stats.binomtest(only_x, only_x + only_y).pvalue)


@overload
def barnard(first: ArrayLike, second: ArrayLike) -> float: ...


@overload
def barnard(first: int, trials_of_first: int, second: int, trials_of_second: int, /) -> float: ...


def barnard(first: Any, second: Any, *counts: Any) -> float:
    """Barnard's exact two-sided p-value that two independent success rates are equal.

    Either two lists of outcomes, or four counts as in :func:`newcombe_interval`.

    Args:
        first: outcomes (0 or 1) of one policy.
        second: outcomes of the other, on initial states of its own.
        counts: the rest of the four counts, where counts are given.
    """
    x, y = _outcomes_of_counts(first, second, *counts) if counts else (outcomes(first), outcomes(second))
    table = [[int(x.sum()), int(y.sum())], [int((~x).sum()), int((~y).sum())]]
    return 1.0 if 0 in (sum(table[0]), sum(table[1])) else float(scipy.stats.barnard_exact(table).pvalue)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
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
