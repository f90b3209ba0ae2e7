"""Differences between encoders with pretraining runs as replicates: a value, and what it is uncertain by."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from latentgym.errors import LatentGymError


@dataclasses.dataclass(frozen=True)
class Effect:
    """An estimate whose error is a sum of independent parts.

    Attributes:
        value: the estimate.
        parts: variance of the estimate and degrees of freedom of that variance, one pair per independent source.
    """

    value: float
    parts: tuple[tuple[float, float], ...]

    @property
    def variance(self) -> float:
        """Variance of the estimate."""
        return sum(variance for variance, _ in self.parts)

    @property
    def quantile(self) -> float:
        """Two-sided 95 % quantile of Student's t, degrees of freedom by Satterthwaite (1946)."""
        return self.quantile_at(0.05)

    def quantile_at(self, error: float) -> float:
        """Two-sided quantile for an error rate of ``error``."""
        below = sum(variance**2 / freedom for variance, freedom in self.parts)
        freedom = self.variance**2 / below if below > 0 else math.inf
        return float(scipy.stats.t.ppf(1 - error / 2, freedom))

    def interval(self, error: float = 0.05) -> tuple[float, float]:
        """Two-sided interval that misses the truth with probability ``error``."""
        half = self.quantile_at(error) * math.sqrt(self.variance)
        return self.value - half, self.value + half

    def __mul__(self, factor: float) -> Effect:
        """The effect in another unit."""
        return Effect(self.value * factor, tuple((v * factor**2, freedom) for v, freedom in self.parts))

    def __add__(self, other: Effect) -> Effect:
        """Sum of two independent effects."""
        return Effect(self.value + other.value, self.parts + other.parts)

    def __sub__(self, other: Effect) -> Effect:
        """Difference of two independent effects."""
        return self + other * -1.0


def effect_of_runs(values: ArrayLike, replicates: ArrayLike, episodes: int) -> Effect:
    """Mean over pretraining runs, uncertain by the spread between runs and by the test episodes that all runs share.

    Args:
        values: ``(S,)`` one value per run, at least two.
        replicates: ``(S, R)`` bootstrap replicates of each over the test episodes, paired across runs.
        episodes: number of test episodes.

    Raises:
        LatentGymError: if there are fewer than two runs: one run says nothing about the next.
    """
    x, drawn = np.asarray(values, dtype=np.float64), np.asarray(replicates, dtype=np.float64)
    if x.size < 2:
        raise LatentGymError(f"an effect needs at least 2 pretraining runs as replicates, found {x.size}")
    means = drawn.mean(axis=0)
    means = means[np.isfinite(means)]
    shared = float(means.var(ddof=1)) if means.size > 1 else 0.0
    # Percentiles of a bootstrap over E episodes are too narrow by E / (E - 1).
    shared *= episodes / max(episodes - 1, 1)
    runs = float(x.var(ddof=1)) / x.size
    return Effect(float(x.mean()), ((runs, x.size - 1.0), (shared, max(episodes - 1.0, 1.0))))


def mean_effect(effects: list[Effect]) -> Effect:
    """Unweighted mean of independent effects."""
    total = effects[0]
    for effect in effects[1:]:
        total = total + effect
    return total * (1 / len(effects))


def ratio_interval(numerator: Effect, denominator: Effect) -> tuple[float | None, float | None]:
    """Fieller's interval of a ratio of independent effects; open ends are ``None``.

    It has no ends where the denominator is not distinct from zero.
    """
    t = (numerator - denominator).quantile
    a = denominator.value**2 - t**2 * denominator.variance
    b = numerator.value * denominator.value
    c = numerator.value**2 - t**2 * numerator.variance
    if a <= 0:
        return None, None
    root = math.sqrt(max(b * b - a * c, 0.0))
    return (b - root) / a, (b + root) / a
