"""The link (PROTOCOL #23): how well does a proxy, measured offline, predict task success across encoders?

Statistics are computed within a place, an environment of one study, and then averaged: encoders of different studies
are never compared with each other, since their data, demonstrations and initial states differ. Intervals come from a
hierarchical bootstrap over families, pretraining runs, the proxy's episodes and rollouts; MMRV and regret are judged
against a null that permutes the proxy between families (with fewer than 40 families, chance alone picks the best one
too often for a verdict on regret). Two scopes are fixed beforehand: all encoders, and all without the supervised
reference. Intermediate checkpoints are no replicates and appear in a scope of their own, clustered under their run.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentgym.errors import LatentGymError
from latentgym.rollouts.link_estimates import (
    LEAVE_ONE_OUT,
    MIN_ENCODERS,
    Estimate,
    correlation,
    estimate_proxy,
    mean_of_defined,
    pool,
    reliability,
)
from latentgym.rollouts.link_points import LinkPoint, places_of, points_file, read_points, write_points
from latentgym.rollouts.link_ranking import ProxyRank, rank_proxies
from latentgym.rollouts.link_samples import draw_samples
from latentgym.statistics import percentile_interval, spearman

__all__ = [
    "LinkPoint", "LinkResult", "LinkRow", "ProxyRank", "analyse_link", "link", "link_studies", "read_points",
    "write_points",
]  # fmt: skip

SCOPE_ALL = "all"
SCOPE_WITHOUT = "all without the supervised reference"
SCOPE_CHECKPOINTS = "all with intermediate checkpoints"
TOO_FEW = "too few encoders"
INCONCLUSIVE = "inconclusive"


@dataclasses.dataclass(frozen=True)
class LinkRow:
    """One statistic of one proxy against success.

    Attributes:
        proxy: name of the proxy, or ``"success_rate"`` for success's own reliability.
        env: place: environment id, with the study in parentheses where several have it; ``"all"``: computed within each
            place, then averaged; ``"all (study)"``: averaged over one study's places, where there are several studies.
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


@dataclasses.dataclass(frozen=True)
class LinkResult:
    """The link over one study or several.

    Attributes:
        rows: statistics by scope, proxy and place.
        ranking: proxies by how well they predict success over all places, scope by scope, the best first.
        points: what went in.
    """

    rows: tuple[LinkRow, ...]
    ranking: tuple[ProxyRank, ...]
    points: tuple[LinkPoint, ...]


def link(points: Sequence[LinkPoint], *, seed: int = 0, replicates: int = 2000) -> list[LinkRow]:
    """Say of every proxy how well it predicts success.

    Args:
        points: one per study, environment, encoder, pretraining seed and checkpoint.
        seed: seed of bootstraps and permutations.
        replicates: number of bootstrap replicates and permutations.

    Returns:
        Rows by scope, proxy and statistic; per place, then averaged over places where there are several.

    Raises:
        LatentGymError: if there is no point, a point occurs twice or is none, or ``replicates`` is not positive.

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
    return list(analyse_link(points, seed=seed, replicates=replicates).rows)


def analyse_link(points: Sequence[LinkPoint], *, seed: int = 0, replicates: int = 2000) -> LinkResult:
    """:func:`link`, with the proxies ranked; arguments and errors are the same."""
    if replicates < 1:
        raise LatentGymError(f"link: replicates must be at least 1, found {replicates}")
    if not points:
        raise LatentGymError("link: expected points to compare, found none; name a study that rolled out policies")
    strange = [type(point).__name__ for point in points if not isinstance(point, LinkPoint)]
    if strange:
        raise LatentGymError(
            f"link: expected LinkPoints, found {strange[0]}; latentgym.rollouts.read_points opens a study's "
            "link_points.json, and link_studies takes folders"
        )
    keys = Counter((point.study, point.env, point.encoder, point.seed, point.checkpoint) for point in points)
    twice = sorted(str(key) for key, count in keys.items() if count > 1)
    if twice:
        raise LatentGymError(
            f"link: these points (study, env, encoder, seed, checkpoint) occur more than once: {'; '.join(twice[:5])}"
        )
    rows: list[LinkRow] = []
    ranking: list[ProxyRank] = []
    for scope, chosen in _scopes(points):
        if scope == SCOPE_CHECKPOINTS:
            rows += _checkpoint_rows(chosen, seed, replicates)
            continue
        found, pooled = _scope_rows(scope, chosen, seed, replicates)
        rows += found
        ranking += rank_proxies(scope, pooled)
    return LinkResult(tuple(rows), tuple(ranking), tuple(points))


def link_studies(*paths: str | Path, seed: int = 0, replicates: int = 2000) -> LinkResult:
    """The link over any number of studies.

    Args:
        paths: study folders, or their ``link_points.json``.
        seed: seed of bootstraps and permutations.
        replicates: number of bootstrap replicates and permutations.

    Raises:
        LatentGymError: if a study is given twice, or none holds a point.
        CorruptDataError: if a file is missing or damaged.
    """
    return analyse_link(read_studies(paths), seed=seed, replicates=replicates)


def read_studies(paths: Sequence[str | Path]) -> list[LinkPoint]:
    """The points of several studies, each under its study's name; of one file as they are.

    Points that name a study already, as those of a file that holds several, keep it behind their file's name.

    Raises:
        LatentGymError: if no path holds a point; if a study is given twice: its copy would count as further evidence;
            or if two studies come under one name.
        CorruptDataError: if a file is missing or damaged.
    """
    found = [_by_study(read_points(path)) for path in paths]
    if not any(found):
        raise LatentGymError(
            f"link: expected points to compare, found none in {', '.join(map(str, paths)) or 'no path at all'}; name a "
            f"study that rolled out policies"
        )
    _refuse_copies(paths, found)
    if len(found) == 1:
        return [point for points in found[0].values() for point in points]
    named = [
        (f"{name}/{study}" if study else name, points)
        for name, studies in zip(study_names(paths), found, strict=True)
        for study, points in studies.items()
    ]
    twice = [name for name, count in Counter(name for name, _ in named).items() if count > 1]
    if twice:
        raise LatentGymError(f"link: two studies come under the name {twice[0]!r}; rename one's folder or file")
    return [dataclasses.replace(point, study=name) for name, points in named for point in points]


def _by_study(points: Sequence[LinkPoint]) -> dict[str, list[LinkPoint]]:
    found: dict[str, list[LinkPoint]] = {}
    for point in points:
        found.setdefault(point.study, []).append(point)
    return found


def _refuse_copies(paths: Sequence[str | Path], found: Sequence[Mapping[str, Sequence[LinkPoint]]]) -> None:
    """Refuse a study that lies in two files, under whatever name."""
    seen: list[tuple[str | Path, list[LinkPoint]]] = []
    for path, studies in zip(paths, found, strict=True):
        own = [[dataclasses.replace(point, study="") for point in points] for points in studies.values()]
        for points in own:
            for other, known in seen:
                if points == known:
                    raise LatentGymError(f"link: {other} and {path} hold the same results; name each once")
        seen += [(path, points) for points in own]


def study_names(paths: Sequence[str | Path]) -> list[str]:
    """A short name for each path, no two alike.

    It is the folder's, preceded by those above it where several are called the same, and followed by the file's where
    several files lie in one folder.
    """
    files = [file.parent.resolve() / file.name for file in map(points_file, paths)]
    shared = Counter(file.parent for file in files)
    parts = [(*file.parent.parts, *([file.stem] if shared[file.parent] > 1 else [])) for file in files]
    shortest = [2 if shared[file.parent] > 1 else 1 for file in files]
    for above in range(max(map(len, parts))):
        names = ["/".join(own[-(least + above) :]) for own, least in zip(parts, shortest, strict=True)]
        if len(set(names)) == len(names):
            return names
    return list(map(str, files))  # the files differ in their suffix alone


def _scopes(points: Sequence[LinkPoint]) -> Iterator[tuple[str, list[LinkPoint]]]:
    final = [point for point in points if point.checkpoint is None]
    if final:
        yield SCOPE_ALL, final
    if any(point.reference for point in final):
        yield SCOPE_WITHOUT, [point for point in final if not point.reference]
    if len(final) < len(points):
        yield SCOPE_CHECKPOINTS, list(points)


def _scope_rows(
    scope: str, points: Sequence[LinkPoint], seed: int, replicates: int
) -> tuple[list[LinkRow], dict[str, dict[str, Estimate]]]:
    """Rows of a scope, and each proxy's statistics averaged over all places."""
    rows: list[LinkRow] = []
    pooled: dict[str, dict[str, Estimate]] = {}
    if not points:
        return rows, pooled
    samples = draw_samples(points, seed=seed, replicates=replicates)
    places = _Places.of(points)
    for proxy in _proxies(points):
        estimates = estimate_proxy(samples, proxy)
        for statistic, parts in estimates.items():
            rows += places.rows(proxy, scope, statistic, parts)
        pooled[proxy] = {statistic: pool(parts) for statistic, parts in estimates.items()}
    ceilings = [reliability(sample) for sample in samples]
    rows += places.rows("success_rate", scope, "split_half_reliability", ceilings)
    return rows, pooled


def _checkpoint_rows(points: Sequence[LinkPoint], seed: int, replicates: int) -> Iterator[LinkRow]:
    samples = draw_samples(points, seed=seed, replicates=replicates)
    for proxy in _proxies(points):
        parts = [correlation(sample, proxy, spearman) for sample in samples]
        yield from _Places.of(points).rows(proxy, SCOPE_CHECKPOINTS, "spearman", parts)


def _proxies(points: Sequence[LinkPoint]) -> list[str]:
    return sorted({name for point in points for name in point.proxies})


@dataclasses.dataclass(frozen=True)
class _Places:
    """The places of a scope, and the study that each belongs to."""

    studies: Mapping[str, str]

    @classmethod
    def of(cls, points: Sequence[LinkPoint]) -> _Places:
        return cls({place: there[0].study for place, there in places_of(points).items()})

    def rows(self, proxy: str, scope: str, statistic: str, parts: Sequence[Estimate]) -> Iterator[LinkRow]:
        """One row per place, then their averages: over each study where there are several, and over all."""
        named = list(zip(self.studies, parts, strict=True))
        by_study: dict[str, list[Estimate]] = {}
        for place, part in zip(self.studies, parts, strict=True):
            by_study.setdefault(self.studies[place], []).append(part)
        if len(by_study) > 1:
            named += [(f"all ({study})", pool(own)) for study, own in by_study.items() if len(own) > 1]
        if len(parts) > 1:
            named.append(("all", pool(parts)))
        for place, part in named:
            yield from _row(proxy, place, scope, statistic, part)


def _row(proxy: str, env: str, scope: str, statistic: str, part: Estimate) -> Iterator[LinkRow]:
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
            proxy,
            env,
            scope,
            f"{statistic}_null",
            mean_of_defined(part.null),
            null[0],
            null[1],
            len(part.encoders),
            "null",
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
