"""The statistics of the link: value, bootstrap replicates and, for those that are judged by chance, a null."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.rollouts.link_samples import Samples
from latentgym.statistics import (
    kendall,
    mean_maximum_rank_violation,
    partial_correlation,
    pearson,
    regret,
    spearman,
    split_half_reliability,
)

COVARIATE = "psnr_db"
LEAVE_ONE_OUT = "spearman_leave_one_family_out"
MIN_ENCODERS = 4
# Ranks lose a dimension to their mean and one to each covariate; of two residuals' single dimension, any ρ is ±1.
_FEWEST_RESIDUALS = 3
CORRELATIONS: Mapping[str, Callable[..., Any]] = {"spearman": spearman, "kendall": kendall, "pearson": pearson}
LESS_IS_BETTER = ("mmrv", "regret")


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """A statistic in one place, or averaged over several.

    Attributes:
        value: the statistic, NaN where it is undefined.
        replicates: ``(R,)`` over resampled families, runs, episodes and rollouts.
        encoders: names of the encoders that it covers.
        null: ``(R,)`` under permutations of the proxy between families, for MMRV and regret.
    """

    value: float
    replicates: NDArray[np.float64]
    encoders: frozenset[str]
    null: NDArray[np.float64] | None = None


def estimate_proxy(samples: Sequence[Samples], proxy: str) -> dict[str, list[Estimate]]:
    """Every statistic of a proxy, one estimate per place."""
    estimates = {
        name: [correlation(sample, proxy, statistic) for sample in samples] for name, statistic in CORRELATIONS.items()
    }
    if proxy != COVARIATE:
        estimates["partial_spearman"] = [_partial(sample, proxy) for sample in samples]
    estimates["mmrv"] = [_mmrv(sample, proxy) for sample in samples]
    estimates["regret"] = [_regret(sample, proxy) for sample in samples]
    estimates[LEAVE_ONE_OUT] = [_leave_one_out(sample, proxy) for sample in samples]
    return estimates


def correlation(sample: Samples, proxy: str, statistic: Callable[..., Any]) -> Estimate:
    """A correlation of proxy and success."""
    x = sample.proxy(proxy)
    drawn = statistic(sample.drawn_proxy(proxy), sample.drawn_success)
    return Estimate(statistic(x, sample.success), drawn, sample.encoders(x))


def _partial(sample: Samples, proxy: str) -> Estimate:
    x = sample.proxy(proxy)
    names = [COVARIATE] if np.isfinite(sample.proxy(COVARIATE)).any() else []
    covariates = [*map(sample.proxy, names), sample.parameters]
    drawn = [*map(sample.drawn_proxy, names), sample.take(sample.parameters)]
    complete = np.logical_and.reduce([np.isfinite(values) for values in (x, sample.success, *covariates)])
    known = np.where(complete, x, np.nan)
    varying = sum(bool(np.ptp(values[complete]) > 0) for values in covariates if complete.any())
    if complete.sum() - varying < _FEWEST_RESIDUALS:
        return Estimate(np.nan, np.full(len(sample.drawn_success), np.nan), sample.encoders(known))
    return Estimate(
        partial_correlation(x, sample.success, covariates),
        partial_correlation(sample.drawn_proxy(proxy), sample.drawn_success, drawn),
        sample.encoders(known),
    )


def _mmrv(sample: Samples, proxy: str) -> Estimate:
    x = sample.proxy(proxy)
    if not _success_varies(sample, x):
        return _undefined(sample, x)
    return Estimate(
        mean_maximum_rank_violation(proxy=x, success=sample.success),
        mean_maximum_rank_violation(proxy=sample.drawn_proxy(proxy), success=sample.drawn_success),
        sample.encoders(x),
        null=np.asarray(mean_maximum_rank_violation(proxy=sample.permuted(x), success=sample.success)),
    )


def _regret(sample: Samples, proxy: str) -> Estimate:
    """Regret averaged over random halvings of the rollouts; each replicate has one halving of its own."""
    x, success = sample.proxy(proxy), sample.success
    if not _success_varies(sample, x):
        return _undefined(sample, x)
    measured = np.where(np.isfinite(x), success, np.nan)
    # What the proxy picks does not depend on the halving, and over halvings a half's mean is the whole's. So only the
    # best encoder's optimism has to be averaged, and value and null share it exactly.
    optimism = mean_of_defined(regret(proxy=measured, choosing=sample.halves[0], measuring=sample.halves[1]))
    first, second = sample.drawn_halves
    return Estimate(
        optimism + regret(proxy=x, choosing=success, measuring=success),
        regret(proxy=sample.drawn_proxy(proxy), choosing=first, measuring=second),
        sample.encoders(x),
        null=optimism + regret(proxy=sample.permuted(x), choosing=success, measuring=success),
    )


def _success_varies(sample: Samples, x: NDArray[np.float64]) -> bool:
    """Whether encoders differ in success at all: where none does, no ranking is wrong and none is right."""
    rates = sample.success[np.isfinite(x) & np.isfinite(sample.success)]
    return bool(rates.size and np.ptp(rates) > 0)


def _undefined(sample: Samples, x: NDArray[np.float64]) -> Estimate:
    nothing = np.full(len(sample.drawn_success), np.nan)
    return Estimate(np.nan, nothing, sample.encoders(x), null=nothing)


def _leave_one_out(sample: Samples, proxy: str) -> Estimate:
    """Spearman's ρ without each family in turn; the range of these stands in for an interval."""
    x = sample.proxy(proxy)
    kept = np.array([[own != family for own in sample.families] for family in sample.all_families])
    values = np.asarray(spearman(np.where(kept, x, np.nan), sample.success))
    return Estimate(mean_of_defined(values), values, sample.encoders(x))


def reliability(sample: Samples) -> Estimate:
    """Reliability of success itself: no proxy can be expected to correlate better than its square root allows."""
    first, second = sample.halves
    return Estimate(
        mean_of_defined(split_half_reliability(first, second)),
        split_half_reliability(sample.take(first), sample.take(second)),
        sample.encoders(sample.success),
    )


def pool(parts: Sequence[Estimate]) -> Estimate:
    """The average over places; those with too few encoders are left out of it, unless all have too few."""
    enough = [part for part in parts if len(part.encoders) >= MIN_ENCODERS] or list(parts)
    nulls = [part.null for part in enough if part.null is not None]
    return Estimate(
        mean_of_defined([part.value for part in enough]),
        mean_of_defined([part.replicates for part in enough], axis=0),
        frozenset().union(*(part.encoders for part in enough)),
        mean_of_defined(nulls, axis=0) if nulls else None,
    )


def mean_of_defined(values: Any, axis: int | None = None) -> Any:
    """Mean over what is defined; NaN where nothing is."""
    array = np.asarray(values, np.float64)
    defined = np.isfinite(array)
    count = defined.sum(axis=axis)
    total = np.where(defined, array, 0.0).sum(axis=axis)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return float(mean) if mean.ndim == 0 else mean
