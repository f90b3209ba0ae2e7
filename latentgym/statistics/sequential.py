"""Looking at results while they come in: intervals that hold at every look, and a paired test with a fixed maximum."""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import bisect
from scipy.special import betaln, gammaln, xlogy

from latentgym.errors import LatentGymError
from latentgym.statistics.checks import check_level, check_paired, outcomes

Verdict = Literal["continue", "first", "second", "undecided"]
_PRIOR = 0.5
_EDGE = 1e-12


def anytime_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of one success rate that holds at all looks at once, whenever one stops.

    The rates that a Beta(1/2, 1/2) mixture of likelihoods does not outbid by 1 / (1 − level) (Robbins 1970; Ville's
    inequality). Wider than :func:`wilson_interval`, which holds for a number of trials fixed beforehand alone.

    Args:
        successes: number of successes so far.
        trials: number of trials so far, at least 1.
        level: confidence level, between 0 and 1.

    Raises:
        LatentGymError: on impossible counts or a level outside (0, 1).

    >>> [round(end, 3) for end in anytime_interval(8, 10)]
    [0.342, 0.991]
    """
    if not (trials >= 1 and 0 <= successes <= trials):
        raise LatentGymError(f"expected 0 <= successes <= trials and trials >= 1, found {successes} of {trials}")
    check_level(level)
    failures = trials - successes
    mixture = betaln(successes + _PRIOR, failures + _PRIOR) - betaln(_PRIOR, _PRIOR)
    limit = mixture + math.log(1 - level)

    def excess(rate: float) -> float:
        return float(xlogy(successes, rate) + xlogy(failures, 1 - rate) - limit)

    best = successes / trials
    low = 0.0 if successes == 0 else float(bisect(excess, _EDGE, best))
    high = 1.0 if failures == 0 else float(bisect(excess, best, 1 - _EDGE))
    return low, high


def anytime_difference_interval(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Interval of ``mean(first) - mean(second)`` over paired trials that holds at all looks at once.

    Projects the confidence sequence of the three outcomes of a pair (only the first succeeds, only the second, no
    difference) under a Dirichlet(1/2) mixture onto the difference.

    Args:
        first: outcomes (0 or 1) so far.
        second: outcomes on the same initial states.
        level: confidence level.

    Raises:
        LatentGymError: on outcomes that are not 0 or 1, or lists of unequal length.
    """
    x, y = outcomes(first), outcomes(second)
    check_paired(x, y)
    check_level(level)
    counts = np.array([(x & ~y).sum(), (~x & y).sum(), (x == y).sum()], dtype=np.float64)
    prior = np.full(3, _PRIOR)
    mixture = _log_dirichlet(counts + prior) - _log_dirichlet(prior)
    limit = float(mixture) + math.log(1 - level)
    best = float(counts[0] - counts[1]) / x.size

    def excess(difference: float) -> float:
        return _profile_likelihood(counts, difference) - limit

    low = -1.0 if excess(-1 + _EDGE) >= 0 else float(bisect(excess, -1 + _EDGE, best))
    high = 1.0 if excess(1 - _EDGE) >= 0 else float(bisect(excess, best, 1 - _EDGE))
    return low, high


def _log_dirichlet(parameters: NDArray[np.float64]) -> float:
    return float(gammaln(parameters).sum() - gammaln(parameters.sum()))


def _profile_likelihood(counts: NDArray[np.float64], difference: float) -> float:
    """Largest log-likelihood of a pair's three outcomes at a given difference of the rates."""
    only_first, only_second, same = counts
    # In q, the rate of "only the second", the derivative vanishes where a quadratic does (Tango 1998).
    a = 2 * counts.sum()
    b = 2 * same * difference - only_first * (1 - difference) - only_second * (1 - 3 * difference)
    c = -only_second * difference * (1 - difference)
    lowest, highest = max(0.0, -difference), (1 - difference) / 2
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    q = min(max((-b + root) / (2 * a), lowest), highest)
    logs = xlogy(only_first, q + difference) + xlogy(only_second, q) + xlogy(same, 1 - 2 * q - difference)
    return float(logs)


class SequentialComparison:
    """Paired comparison of two policies that stops as soon as it is decided, and at a maximum declared beforehand.

    Pairs in which exactly one policy succeeds are a fair coin under the null. The test stops where a Beta(1/2, 1/2)
    mixture outbids the coin by a factor that is calibrated exactly, by dynamic programming, so that at most 1 − level
    of all comparisons between equal policies are ever decided within ``maximum`` pairs. It also stops, undecided, where
    the pairs that are left could not decide it.

    Args:
        maximum: largest number of pairs, declared before the first.
        level: confidence level; 1 − level is the two-sided error over all looks.

    Attributes:
        pairs: number of pairs so far.

    Raises:
        LatentGymError: on a maximum too small for any decision, or a level outside (0, 1).

    Example:
        >>> test = SequentialComparison(maximum=50)
        >>> [test.update(first=True, second=False) for _ in range(6)][-2:]
        ['continue', 'first']
    """

    def __init__(self, maximum: int, level: float = 0.95) -> None:
        check_level(level)
        if maximum < 1 or 2.0 ** (1 - maximum) > 1 - level:
            raise LatentGymError(
                f"sequential comparison: no result of {maximum} pairs could decide at level {level}; declare more"
            )
        self.maximum, self.level, self.pairs = maximum, level, 0
        self._threshold = _calibrated_threshold(maximum, level)
        self._first_only = self._second_only = 0
        self._verdict: Verdict = "continue"

    @property
    def verdict(self) -> Verdict:
        """``"first"`` or ``"second"`` (the better one), ``"continue"``, or ``"undecided"`` for good."""
        return self._verdict

    def update(self, first: bool, second: bool) -> Verdict:
        """Take in one pair of outcomes on one initial state.

        Raises:
            LatentGymError: if the comparison has ended.
        """
        if self._verdict != "continue":
            raise LatentGymError(f"the sequential comparison has ended: {self._verdict} after {self.pairs} pairs")
        self.pairs += 1
        self._first_only += bool(first) and not second
        self._second_only += bool(second) and not first
        if _log_bid(self._first_only, self._second_only) >= self._threshold:
            self._verdict = "first" if self._first_only > self._second_only else "second"
        elif self._is_hopeless():
            self._verdict = "undecided"
        return self._verdict

    def _is_hopeless(self) -> bool:
        left = np.arange(self.maximum - self.pairs + 1)
        best = (
            _log_bid(self._first_only + left, self._second_only),
            _log_bid(self._first_only, self._second_only + left),
        )
        return bool(np.max(best) < self._threshold)


def _log_bid(first_only: ArrayLike, second_only: ArrayLike) -> NDArray[np.float64]:
    """Log of the mixture's likelihood over the fair coin's."""
    won, lost = np.asarray(first_only, np.float64), np.asarray(second_only, np.float64)
    return np.asarray(betaln(won + _PRIOR, lost + _PRIOR) - betaln(_PRIOR, _PRIOR) + (won + lost) * math.log(2))


@functools.lru_cache(maxsize=64)
def _calibrated_threshold(maximum: int, level: float) -> float:
    """Smallest threshold that a fair coin exceeds within ``maximum`` tosses with probability at most 1 − level."""
    low, high = 0.0, -math.log(1 - level)
    for _ in range(30):
        middle = (low + high) / 2
        if _crossing_probability(maximum, middle) <= 1 - level:
            high = middle
        else:
            low = middle
    return high


def _crossing_probability(maximum: int, threshold: float) -> float:
    running, crossed = np.ones(1), 0.0
    for tosses in range(1, maximum + 1):
        running = np.convolve(running, (0.5, 0.5))
        won = np.arange(tosses + 1)
        stops = _log_bid(won, tosses - won) >= threshold
        crossed += float(running[stops].sum())
        running = np.where(stops, 0.0, running)
    return crossed
