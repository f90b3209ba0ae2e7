"""How many episodes a comparison of two policies needs, and what a given number can show."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from latentgym.errors import LatentGymError
from latentgym.statistics.checks import check_level

# Barnard's rejection region is enumerated up to here, a tenth of a second each. Beyond, the normal approximation is
# within 0.02 of it for rates from 0.02 to 0.98, and too low nearer to 0 and 1.
EXACT_UP_TO = 500
# Plans for more are refused: nobody rolls out as many, and exact power would take minutes.
MOST_EPISODES = 10_000_000
_NUISANCE = 50
_TEETH = 25
# Numbers of discordant pairs further than this many deviations (and as many pairs) from the mean have no mass that a
# double could hold beside the rest.
_DEVIATIONS, _MARGIN = 9, 40


@dataclasses.dataclass(frozen=True)
class Power:
    """A plan for comparing two success rates.

    Attributes:
        episodes: episodes per policy.
        power: probability that the test finds the difference.
        effect: difference of the success rates.
        rate: success rate of the first policy; the second has ``rate + effect``.
        level: confidence level; the test is two-sided.
        paired: whether both policies start from the same initial states (McNemar), or from their own (Barnard).
        correlation: correlation between the outcomes of a pair (0 if not paired).
        method: ``"exact"`` or ``"normal approximation"``.
    """

    episodes: int
    power: float
    effect: float
    rate: float
    level: float
    paired: bool
    correlation: float
    method: str


def comparison_power(
    episodes: int,
    effect: float,
    *,
    rate: float = 0.5,
    level: float = 0.95,
    paired: bool = False,
    correlation: float = 0.0,
) -> Power:
    """Probability that a two-sided test finds the difference between two success rates.

    Paired: exact McNemar, its power summed over the number of discordant pairs. Independent: Barnard's test with equal
    samples, exactly up to 500 episodes and by the normal approximation of the pooled score test (Fleiss 1981, without
    continuity correction) beyond.

    Args:
        episodes: episodes per policy.
        effect: difference of the success rates, not 0.
        rate: success rate of the first policy; the second has ``rate + effect``.
        level: confidence level.
        paired: whether both policies are tried on the same initial states.
        correlation: correlation (phi) between the outcomes of a pair; initial states that are hard for both raise it.

    Raises:
        LatentGymError: if a rate leaves [0, 1], the effect is 0, or no pair of policies has this correlation.

    >>> round(comparison_power(392, 0.1).power, 2)
    0.8
    """
    _check(effect, rate, level, paired, correlation)
    if episodes < 1:
        raise LatentGymError(f"power: expected at least 1 episode, found {episodes}")
    other = rate + effect
    if paired:
        power, method = _mcnemar_power(episodes, *_discordant(rate, other, correlation), level), "exact"
    elif episodes <= EXACT_UP_TO:
        power, method = _barnard_power(episodes, rate, other, level), "exact"
    else:
        power, method = _score_power(episodes, rate, other, level), "normal approximation"
    return Power(episodes, power, effect, rate, level, paired, correlation, method)


def required_episodes(
    effect: float,
    *,
    rate: float = 0.5,
    power: float = 0.8,
    level: float = 0.95,
    paired: bool = False,
    correlation: float = 0.0,
) -> Power:
    """Episodes per policy that a two-sided test needs to find a difference with a given probability.

    Exact power moves up and down by a little as episodes are added; the answer is the number from which it stays at
    ``power`` or above.

    Args:
        effect: smallest difference of the success rates that matters, not 0.
        rate: success rate of the first policy; the second has ``rate + effect``.
        power: probability of finding it, between 0 and 1.
        level: confidence level.
        paired: whether both policies are tried on the same initial states.
        correlation: correlation (phi) between the outcomes of a pair.

    Raises:
        LatentGymError: as in :func:`comparison_power`, on a power outside (0, 1), or if it takes more than 10 million
            episodes.

    >>> required_episodes(0.1).episodes, required_episodes(0.1, paired=True, correlation=0.5).episodes
    (392, 211)
    """
    _check(effect, rate, level, paired, correlation)
    if not 0 < power < 1:
        raise LatentGymError(f"power: expected a probability between 0 and 1, found {power}")

    def at(episodes: int) -> Power:
        return comparison_power(episodes, effect, rate=rate, level=level, paired=paired, correlation=correlation)

    low, high = 0, 8
    while at(high).power < power:
        if high == MOST_EPISODES:
            raise LatentGymError(
                f"power: an effect of {effect:g} needs more than {high:,} episodes per policy; give a larger one"
            )
        # Exact power is tried as far as it goes: beyond, the approximation may ask for more.
        further = EXACT_UP_TO if not paired and high < EXACT_UP_TO < 2 * high else 2 * high
        low, high = high, min(further, MOST_EPISODES)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle).power >= power else (middle, high)
    # The saw's teeth are wide where numbers are small, and vanish in a sum over many discordant pairs.
    last = EXACT_UP_TO + 1 if not paired and high <= EXACT_UP_TO else high + _TEETH
    teeth = [episodes for episodes in range(high, min(high + _TEETH, last)) if at(episodes).power < power]
    return at(max(teeth, default=high - 1) + 1)


def _check(effect: float, rate: float, level: float, paired: bool, correlation: float) -> None:
    check_level(level)
    if effect == 0 or not (0 <= rate <= 1 and -1e-12 <= rate + effect <= 1 + 1e-12):
        raise LatentGymError(
            f"power: expected an effect other than 0 and rates between 0 and 1, found {rate} and {rate + effect:g}"
        )
    if not paired and correlation:
        raise LatentGymError("power: a correlation needs paired episodes (--paired)")
    if paired:
        _discordant(rate, rate + effect, correlation)


def _discordant(rate: float, other: float, correlation: float) -> tuple[float, float]:
    """Probabilities that only the first, and only the second of a pair succeeds."""
    other = min(max(other, 0.0), 1.0)
    both = rate * other + correlation * math.sqrt(rate * (1 - rate) * other * (1 - other))
    only_first, only_second = rate - both, other - both
    if min(both, only_first, only_second, 1 - rate - only_second) < -1e-9:
        spread = math.sqrt(rate * (1 - rate) * other * (1 - other))
        lowest = (max(0.0, rate + other - 1) - rate * other) / spread if spread else 0.0
        highest = (min(rate, other) - rate * other) / spread if spread else 0.0
        raise LatentGymError(
            f"power: success rates {rate:g} and {other:g} allow correlations from {lowest:.2f} to {highest:.2f}, "
            f"found {correlation:g}"
        )
    return max(only_first, 0.0), max(only_second, 0.0)


def _mcnemar_power(episodes: int, only_first: float, only_second: float, level: float) -> float:
    discordant = only_first + only_second
    if discordant == 0:
        return 0.0
    mean = episodes * discordant
    reach = _DEVIATIONS * math.sqrt(mean * max(1 - discordant, 0)) + _MARGIN
    pairs = np.arange(max(0, math.floor(mean - reach)), min(episodes, math.ceil(mean + reach)) + 1)
    rarest = _largest_significant(pairs, (1 - level) / 2)
    share = only_second / discordant
    found = scipy.stats.binom.cdf(rarest, pairs, share) + scipy.stats.binom.cdf(rarest, pairs, 1 - share)
    return float((scipy.stats.binom.pmf(pairs, episodes, discordant) * found).sum())


def _largest_significant(pairs: NDArray[np.int64], tail: float) -> NDArray[np.float64]:
    """Largest count of the rarer kind among each number of pairs that is still significant, -1 where none is."""
    # The normal quantile is off by a step or two, which the exact distribution puts right.
    count: NDArray[np.float64] = np.floor((pairs - 1 + scipy.stats.norm.ppf(tail) * np.sqrt(pairs)) / 2).clip(-1)
    while (over := (count >= 0) & (scipy.stats.binom.cdf(count, pairs, 0.5) > tail)).any():
        count -= over
    while (under := scipy.stats.binom.cdf(count + 1, pairs, 0.5) <= tail).any():
        count += under
    return count


def _barnard_power(episodes: int, rate: float, other: float, level: float) -> float:
    first, second = (scipy.stats.binom.pmf(np.arange(episodes + 1), episodes, p) for p in (rate, min(max(other, 0), 1)))
    return float(first @ _barnard_region(episodes, level) @ second)


@functools.lru_cache(maxsize=512)
def _barnard_region(episodes: int, level: float) -> NDArray[np.float64]:
    """Tables ``(x, y)`` that Barnard's test with the pooled Wald statistic rejects, as 0 and 1."""
    count = np.arange(episodes + 1)
    pooled = (count[:, None] + count) / (2 * episodes)
    spread = np.sqrt(pooled * (1 - pooled) * 2 * episodes)
    gap = np.abs(count[:, None] - count)
    statistic = np.where(gap > 0, gap / np.where(spread > 0, spread, 1.0), 0.0).round(9)
    rates = np.linspace(0, 0.5, _NUISANCE + 1)[1:]
    tables = scipy.stats.binom.pmf(count, episodes, rates[:, None])
    values, place = np.unique(statistic, return_inverse=True)
    place = place.reshape(-1)
    worst = np.zeros(len(values))
    for table in tables:
        mass = np.bincount(place, weights=np.outer(table, table).ravel(), minlength=len(values))
        worst = np.maximum(worst, mass[::-1].cumsum()[::-1])
    return (worst <= 1 - level)[place].reshape(statistic.shape).astype(np.float64)


def _score_power(episodes: int, rate: float, other: float, level: float) -> float:
    mean = (rate + other) / 2
    null = math.sqrt(2 * mean * (1 - mean))
    spread = math.sqrt(rate * (1 - rate) + other * (1 - other))
    quantile = scipy.stats.norm.ppf((1 + level) / 2)
    gap = abs(other - rate) * math.sqrt(episodes)
    if spread == 0:
        return 1.0
    return float(
        scipy.stats.norm.cdf((gap - quantile * null) / spread) + scipy.stats.norm.cdf((-gap - quantile * null) / spread)
    )
