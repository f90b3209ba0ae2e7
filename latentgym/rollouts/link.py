"""The link (PROTOCOL #23): how well does a proxy, measured offline, predict task success across encoders?

Statistics are computed within an environment and then averaged. Intervals come from a hierarchical bootstrap over
families, pretraining runs, the proxy's episodes and rollouts; MMRV and regret are judged against a null that permutes
the proxy between families (with fewer than 40 families, chance alone picks the best one too often for a verdict on
regret). Two scopes are fixed beforehand: all encoders, and all without the supervised reference.
Intermediate checkpoints are no replicates and appear in a scope of their own, clustered under their run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.errors import LatentGymError
from latentgym.rollouts.link_points import LinkPoint, read_points, write_points
from latentgym.rollouts.link_samples import Samples, draw_samples
from latentgym.statistics import (
    kendall,
    mean_maximum_rank_violation,
    partial_correlation,
    pearson,
    percentile_interval,
    regret,
    spearman,
    split_half_reliability,
)

__all__ = ["LinkPoint", "LinkRow", "link", "link_studies", "read_points", "write_points"]

SCOPE_ALL = "all"
SCOPE_WITHOUT = "all without the supervised reference"
SCOPE_CHECKPOINTS = "all with intermediate checkpoints"
MIN_ENCODERS = 4
COVARIATE = "psnr_db"
TOO_FEW = "too few encoders"
INCONCLUSIVE = "inconclusive"
LEAVE_ONE_OUT = "spearman_leave_one_family_out"


@dataclasses.dataclass(frozen=True)
class LinkRow:
    """One statistic of one proxy against success.

    Attributes:
        proxy: name of the proxy, or ``"success_rate"`` for success's own reliability.
        env: environment id, or ``"all"``: computed within each environment, then averaged.
        scope: which encoders are in.
        statistic: ``"spearman"``, ``"kendall"``, ``"pearson"``, ``"partial_spearman"`` (given PSNR and parameters),
            ``"mmrv"``, ``"regret"``, ``"mmrv_null"``, ``"regret_null"`` (mean and 95 % range under permutation),
            ``"spearman_leave_one_family_out"`` (mean and range), ``"split_half_reliability"``.
        value: the statistic; ``None`` where it is undefined.
        low: lower end of the 95 % interval, or of the range.
        high: upper end.
        n_encoders: number of encoders.
        verdict: ``"positive"`` (the proxy predicts success), ``"negative"``, ``"inconclusive"``,
            ``"too few encoders"``; ``"null"`` and ``"range"`` where the interval is a null's or a range.
    """

    proxy: str
    env: str
    scope: str
    statistic: str
    value: float | None
    low: float | None
    high: float | None
    n_encoders: int
    verdict: str


def link(points: Sequence[LinkPoint], *, seed: int = 0, replicates: int = 2000) -> list[LinkRow]:
    """Rank every proxy by how well it predicts success.

    Args:
        points: one per environment, encoder, pretraining seed and checkpoint.
        seed: seed of bootstraps and permutations.
        replicates: number of bootstrap replicates and permutations.

    Returns:
        Rows by scope, proxy and statistic; per environment, then averaged over environments where there are several.

    Raises:
        LatentGymError: if a point occurs twice, or ``replicates`` is not positive.

    Example:
        >>> outcomes = [[1] * n + [0] * (20 - n) for n in (2, 6, 10, 14, 18)]
        >>> points = [
        ...     LinkPoint(env="e", encoder=str(i), family=str(i), proxies={"r2": i / 5}, success=[outcomes[i]])
        ...     for i in range(5)
        ... ]
        >>> row = link(points, replicates=200)[0]
        >>> row.statistic, round(row.value, 6), row.verdict
        ('spearman', 1.0, 'positive')
    """
    if replicates < 1:
        raise LatentGymError(f"link: replicates must be at least 1, found {replicates}")
    keys = [(point.env, point.encoder, point.seed, point.checkpoint) for point in points]
    twice = sorted({str(key) for key in keys if keys.count(key) > 1})
    if twice:
        raise LatentGymError(f"link: these points (env, encoder, seed, checkpoint) occur more than once: {twice[:5]}")
    return [row for scope, chosen in _scopes(points) for row in _scope_rows(scope, chosen, seed, replicates)]


def link_studies(*paths: str | Path, seed: int = 0, replicates: int = 2000) -> list[LinkRow]:
    """The link over any number of studies.

    Args:
        paths: study folders, or their ``link_points.json``. Encoders of later studies are told apart by their folder
            where a point of the same name exists already.
        seed: seed of bootstraps and permutations.
        replicates: number of bootstrap replicates and permutations.
    """
    points: dict[tuple[Any, ...], LinkPoint] = {}
    for index, path in enumerate(map(Path, paths)):
        for point in read_points(path):
            known = (point.env, point.encoder, point.seed, point.checkpoint) in points
            name = f"{point.encoder} (study {index + 1})" if known else point.encoder
            points[point.env, name, point.seed, point.checkpoint] = dataclasses.replace(point, encoder=name)
    return link(list(points.values()), seed=seed, replicates=replicates)


def _scopes(points: Sequence[LinkPoint]) -> Iterator[tuple[str, list[LinkPoint]]]:
    final = [point for point in points if point.checkpoint is None]
    yield SCOPE_ALL, final
    if any(point.reference for point in final):
        yield SCOPE_WITHOUT, [point for point in final if not point.reference]
    if len(final) < len(points):
        yield SCOPE_CHECKPOINTS, list(points)


def _scope_rows(scope: str, points: Sequence[LinkPoint], seed: int, replicates: int) -> Iterator[LinkRow]:
    envs = list(dict.fromkeys(point.env for point in points))
    if not envs:
        return
    samples = draw_samples(points, envs, seed=seed, replicates=replicates)
    for proxy in sorted({name for point in points for name in point.proxies}):
        if scope == SCOPE_CHECKPOINTS:
            estimates = {"spearman": [_correlation(sample, proxy, spearman) for sample in samples]}
        else:
            estimates = _estimates(samples, proxy)
        for statistic, parts in estimates.items():
            yield from _rows(proxy, scope, statistic, envs, parts)
    if scope != SCOPE_CHECKPOINTS:
        yield from _rows("success_rate", scope, "split_half_reliability", envs, [_reliability(s) for s in samples])


@dataclasses.dataclass(frozen=True)
class _Estimate:
    """A statistic in one environment: its value, replicates, and for MMRV and regret the permutation null."""

    value: float
    replicates: NDArray[np.float64]
    encoders: frozenset[str]
    null: NDArray[np.float64] | None = None


def _estimates(samples: Sequence[Samples], proxy: str) -> dict[str, list[_Estimate]]:
    estimates: dict[str, list[_Estimate]] = {
        name: [_correlation(sample, proxy, statistic) for sample in samples]
        for name, statistic in (("spearman", spearman), ("kendall", kendall), ("pearson", pearson))
    }
    if proxy != COVARIATE:
        estimates["partial_spearman"] = [_partial(sample, proxy) for sample in samples]
    estimates["mmrv"] = [_mmrv(sample, proxy) for sample in samples]
    estimates["regret"] = [_regret(sample, proxy) for sample in samples]
    estimates[LEAVE_ONE_OUT] = [_leave_one_out(sample, proxy) for sample in samples]
    return estimates


def _correlation(sample: Samples, proxy: str, statistic: Any) -> _Estimate:
    x = sample.proxy(proxy)
    drawn = statistic(sample.drawn_proxy(proxy), sample.drawn_success)
    return _Estimate(statistic(x, sample.success), drawn, sample.encoders(x))


def _partial(sample: Samples, proxy: str) -> _Estimate:
    x = sample.proxy(proxy)
    names = [COVARIATE] if np.isfinite(sample.proxy(COVARIATE)).any() else []
    covariates = [*map(sample.proxy, names), sample.parameters]
    drawn = [*map(sample.drawn_proxy, names), sample.take(sample.parameters)]
    return _Estimate(
        partial_correlation(x, sample.success, covariates),
        partial_correlation(sample.drawn_proxy(proxy), sample.drawn_success, drawn),
        sample.encoders(x),
    )


def _mmrv(sample: Samples, proxy: str) -> _Estimate:
    x = sample.proxy(proxy)
    return _Estimate(
        mean_maximum_rank_violation(proxy=x, success=sample.success),
        mean_maximum_rank_violation(proxy=sample.drawn_proxy(proxy), success=sample.drawn_success),
        sample.encoders(x),
        null=np.asarray(mean_maximum_rank_violation(proxy=sample.permuted(x), success=sample.success)),
    )


def _regret(sample: Samples, proxy: str) -> _Estimate:
    """Regret averaged over random halvings of the rollouts; each replicate has one halving of its own."""
    x, success = sample.proxy(proxy), sample.success
    measured = np.where(np.isfinite(x), success, np.nan)
    # What the proxy picks does not depend on the halving, and over halvings a half's mean is the whole's. So only the
    # best encoder's optimism has to be averaged, and value and null share it exactly.
    optimism = _mean(regret(proxy=measured, choosing=sample.halves[0], measuring=sample.halves[1]))
    first, second = sample.drawn_halves
    return _Estimate(
        optimism + regret(proxy=x, choosing=success, measuring=success),
        regret(proxy=sample.drawn_proxy(proxy), choosing=first, measuring=second),
        sample.encoders(x),
        null=optimism + regret(proxy=sample.permuted(x), choosing=success, measuring=success),
    )


def _leave_one_out(sample: Samples, proxy: str) -> _Estimate:
    """Spearman's ρ without each family in turn; the range of these stands in for an interval."""
    x = sample.proxy(proxy)
    families = list(dict.fromkeys(sample.families))
    kept = np.array([[own != family for own in sample.families] for family in families])
    values = np.asarray(spearman(np.where(kept, x, np.nan), sample.success))
    return _Estimate(_mean(values), values, sample.encoders(x))


def _reliability(sample: Samples) -> _Estimate:
    """Reliability of success itself: no proxy can be expected to correlate better than its square root allows."""
    first, second = sample.halves
    return _Estimate(
        _mean(split_half_reliability(first, second)),
        split_half_reliability(sample.take(first), sample.take(second)),
        sample.encoders(sample.success),
    )


def _mean(values: Any, axis: int | None = None) -> Any:
    """Mean over what is defined; NaN where nothing is."""
    array = np.asarray(values, np.float64)
    defined = np.isfinite(array)
    count = defined.sum(axis=axis)
    total = np.where(defined, array, 0.0).sum(axis=axis)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return float(mean) if mean.ndim == 0 else mean


def _rows(proxy: str, scope: str, statistic: str, envs: Sequence[str], parts: Sequence[_Estimate]) -> Iterator[LinkRow]:
    """One row per environment, then their average; environments with too few encoders are left out of it."""
    named = list(zip(envs, parts, strict=True))
    if len(envs) > 1:
        enough = [part for part in parts if len(part.encoders) >= MIN_ENCODERS] or list(parts)
        nulls = [part.null for part in enough if part.null is not None]
        pooled = _Estimate(
            _mean([part.value for part in enough]),
            _mean([part.replicates for part in enough], axis=0),
            frozenset().union(*(part.encoders for part in enough)),
            _mean(nulls, axis=0) if nulls else None,
        )
        named.append(("all", pooled))
    for env, part in named:
        yield from _row(proxy, env, scope, statistic, part)


def _row(proxy: str, env: str, scope: str, statistic: str, part: _Estimate) -> Iterator[LinkRow]:
    few = len(part.encoders) < MIN_ENCODERS
    value = float(part.value) if np.isfinite(part.value) else None
    low, high = (None, None) if few or value is None else _interval(statistic, part.replicates)
    null = (None, None) if few or part.null is None else percentile_interval(part.null)
    if few:
        verdict = TOO_FEW
    elif statistic == LEAVE_ONE_OUT:
        verdict = "range"
    else:
        verdict = _verdict(value, low, high, null if part.null is not None else None)
    yield LinkRow(proxy, env, scope, statistic, value, low, high, len(part.encoders), verdict)
    if part.null is not None and null[0] is not None:
        yield LinkRow(
            proxy, env, scope, f"{statistic}_null", _mean(part.null), null[0], null[1], len(part.encoders), "null"
        )


def _interval(statistic: str, replicates: NDArray[np.float64]) -> tuple[float | None, float | None]:
    if statistic != LEAVE_ONE_OUT:
        return percentile_interval(replicates)
    defined = replicates[np.isfinite(replicates)]
    return (float(defined.min()), float(defined.max())) if defined.size else (None, None)


def _verdict(
    value: float | None,
    low: float | None,
    high: float | None,
    null: tuple[float | None, float | None] | None,
) -> str:
    """Correlations by their interval against 0; MMRV and regret, where less is better, by the null's range."""
    if null is not None:
        if value is None or null[0] is None or null[1] is None or null[0] <= value <= null[1]:
            return INCONCLUSIVE
        return "positive" if value < null[0] else "negative"
    if low is None or high is None or low <= 0 <= high:
        return INCONCLUSIVE
    return "positive" if low > 0 else "negative"
