"""Where probe and policy disagree: encoders that a proxy ranks otherwise than success does, and how sure ranks are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from latentgym.rollouts.link_points import LinkPoint, places_of
from latentgym.seeding import numpy_generator
from latentgym.statistics import crossed_bootstrap_means, percentile_interval

Floats = NDArray[np.float64]
Range = tuple[int, int] | tuple[None, None]


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """One encoder run in one place: what a proxy says of it, and what its policy does.

    Ranks count from 1, the best, among the runs of the place that have the proxy; ties share the better rank. Their
    ranges hold 95 % of resamples of the episodes behind the proxy, and of policy seeds and rollouts. A resample that
    leaves a run's proxy undefined does not rank it; where more than half are such, its rank has no range.

    Attributes:
        place: environment, with the study where several have it.
        encoder: encoder name.
        seed: pretraining seed.
        proxy: name of the proxy.
        value: the proxy's value.
        rank: its rank by the proxy.
        low: lower end of that rank's range; ``None`` where it has none.
        high: upper end; ``None`` where it has none.
        success_rate: success over all policy seeds.
        success_rank: its rank by success.
        success_low: lower end of that rank's range.
        success_high: upper end.
        n: number of runs that are ranked.
        clear: whether both ranges are known and have no rank in common.
    """

    place: str
    encoder: str
    seed: int
    proxy: str
    value: float
    rank: int
    low: int | None
    high: int | None
    success_rate: float
    success_rank: int
    success_low: int | None
    success_high: int | None
    n: int
    clear: bool

    @property
    def gap(self) -> float:
        """Ranks lost from proxy to success, as a share of the most that could be; positive where the proxy flatters."""
        return (self.success_rank - self.rank) / (self.n - 1)


def disagreements(points: Sequence[LinkPoint], *, seed: int = 0, replicates: int = 1000) -> list[Disagreement]:
    """Every final checkpoint under every proxy, the largest disagreement first.

    Args:
        points: points of one study or several; intermediate checkpoints are left out, and so are places where success
            does not differ.
        seed: seed of all resampling.
        replicates: number of resamples.
    """
    found: list[Disagreement] = []
    for place, there in places_of([point for point in points if point.checkpoint is None]).items():
        drawn_success = _drawn_success(place, there, seed, replicates)
        for proxy in sorted({name for point in there for name in point.proxies}):
            known = [index for index, point in enumerate(there) if np.isfinite(point.proxies.get(proxy, np.nan))]
            chosen = [there[index] for index in known]
            # Where all succeed equally often, success ranks nobody.
            if len({float(np.mean(point.success)) for point in chosen}) > 1:
                drawn = _drawn_proxy(place, chosen, proxy, seed, replicates)
                found += _ranked(place, chosen, proxy, drawn, drawn_success[:, known])
    return sorted(found, key=lambda item: (-abs(item.gap), not item.clear, item.place, item.proxy, item.encoder))


def _ranked(
    place: str, points: Sequence[LinkPoint], proxy: str, drawn: Floats, drawn_success: Floats
) -> list[Disagreement]:
    values = np.array([point.proxies[proxy] for point in points])
    rates = np.array([np.mean(point.success) for point in points])
    rank, success_rank = _ranks(values), _ranks(rates)
    said, done = _ranges(_ranks(drawn)), _ranges(_ranks(drawn_success))
    return [
        Disagreement(
            place=place,
            encoder=point.encoder,
            seed=point.seed,
            proxy=proxy,
            value=float(values[i]),
            rank=int(rank[i]),
            low=said[i][0],
            high=said[i][1],
            success_rate=float(rates[i]),
            success_rank=int(success_rank[i]),
            success_low=done[i][0],
            success_high=done[i][1],
            n=len(points),
            clear=_apart(said[i], done[i]),
        )
        for i, point in enumerate(points)
    ]


def _drawn_success(place: str, points: Sequence[LinkPoint], seed: int, replicates: int) -> Floats:
    """Success rates ``(R, N)`` over resampled policy seeds and rollouts, the same initial states for every policy."""
    columns = []
    for point in points:
        outcomes = np.asarray(point.success, np.float64)
        rows = numpy_generator(seed, "disagreements", place, point.encoder, point.seed)
        states = numpy_generator(seed, "disagreements", place, outcomes.shape[1])
        columns.append(crossed_bootstrap_means(outcomes, replicates, rows=rows, columns=states))
    return np.stack(columns, axis=1)


def _drawn_proxy(place: str, points: Sequence[LinkPoint], proxy: str, seed: int, replicates: int) -> Floats:
    """Values ``(R, N)`` over resampled episodes, the same for every encoder; constant where no replicates are known."""
    uniform = numpy_generator(seed, "disagreements", place, "episodes").random(replicates)
    columns = []
    for point in points:
        known = np.asarray(point.proxy_replicates.get(proxy) or [point.proxies[proxy]], np.float64)
        columns.append(known[(uniform * len(known)).astype(np.intp)])
    return np.stack(columns, axis=1)


def _ranks(values: Floats) -> Floats:
    """Ranks from 1 for the largest along the last axis, among what is defined; NaN elsewhere."""
    return np.asarray(scipy.stats.rankdata(-values, method="min", axis=-1, nan_policy="omit"))


def _ranges(ranks: Floats) -> list[Range]:
    """The 95 % range of each column's ranks, outwards to whole ranks."""
    found: list[Range] = []
    for column in ranks.T:
        low, high = percentile_interval(column)
        found.append((None, None) if low is None or high is None else (math.floor(low), math.ceil(high)))
    return found


def _apart(ours: Range, theirs: Range) -> bool:
    """Whether two known ranges have no rank in common."""
    (low, high), (other_low, other_high) = ours, theirs
    if low is None or high is None or other_low is None or other_high is None:
        return False
    return low > other_high or high < other_low
