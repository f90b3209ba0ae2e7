"""Which proxy predicts success best, and how sure that order is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from latentgym.rollouts.link_estimates import LESS_IS_BETTER, MIN_ENCODERS, Estimate

RANKED_BY = "spearman"
STATISTICS = ("spearman", "kendall", "pearson", "mmrv", "regret")


@dataclasses.dataclass(frozen=True)
class ProxyRank:
    """One proxy among those that were compared.

    Attributes:
        proxy: its name.
        scope: which encoders are in.
        rank: 1 for the best, by Spearman's ρ averaged over places; ``None`` where it is undefined.
        low: lower end of the 95 % range of the rank over bootstrap replicates, the same for all proxies.
        high: upper end.
        best_share: share of these replicates in which it is the best; ties share.
        n_proxies: number of proxies that were compared.
        ranks: its rank by each statistic; for MMRV and regret the smallest value is the best.
    """

    proxy: str
    scope: str
    rank: int | None
    low: int | None
    high: int | None
    best_share: float | None
    n_proxies: int
    ranks: dict[str, int | None]


def rank_proxies(scope: str, pooled: Mapping[str, Mapping[str, Estimate]]) -> list[ProxyRank]:
    """Proxies of one scope, the best first.

    All are resampled alike, so that replicates compare them on the same families, runs, episodes and rollouts. A proxy
    that fewer than four encoders have is not ranked.

    Args:
        scope: name of the scope.
        pooled: proxy to statistic to its average over places.
    """
    names = list(pooled)
    if not names:
        return []
    known = np.array([len(pooled[name][RANKED_BY].encoders) >= MIN_ENCODERS for name in names])
    ranks = {
        statistic: _ranks(np.array([pooled[name][statistic].value for name in names]), known, statistic)
        for statistic in STATISTICS
    }
    drawn = np.stack([pooled[name][RANKED_BY].replicates for name in names])
    drawn_ranks = np.stack([_ranks(column, known, RANKED_BY) for column in drawn.T], axis=1)
    best = drawn_ranks == 1
    shares = (best / np.maximum(best.sum(axis=0), 1)).sum(axis=1) / max(int(best.any(axis=0).sum()), 1)
    found = []
    for index, name in enumerate(names):
        defined = drawn_ranks[index][np.isfinite(drawn_ranks[index])]
        rank = _whole(ranks[RANKED_BY][index])
        low: int | None = None
        high: int | None = None
        if rank is not None and defined.size:
            ends = np.quantile(defined, [0.025, 0.975])
            low, high = int(np.floor(ends[0])), int(np.ceil(ends[1]))
        found.append(
            ProxyRank(
                proxy=name,
                scope=scope,
                rank=rank,
                low=low,
                high=high,
                best_share=None if rank is None else float(shares[index]),
                n_proxies=int(np.isfinite(ranks[RANKED_BY]).sum()),
                ranks={statistic: _whole(values[index]) for statistic, values in ranks.items()},
            )
        )
    return sorted(found, key=lambda item: (item.rank is None, item.rank or 0, item.proxy))


def _ranks(values: NDArray[np.float64], known: NDArray[np.bool_], statistic: str) -> NDArray[np.float64]:
    """Ranks from 1 for the best, ties sharing the better one; NaN where undefined."""
    signed = values if statistic in LESS_IS_BETTER else -values
    defined = known & np.isfinite(signed)
    ahead = (signed[None, :] < signed[:, None]) & defined[None, :]
    return np.where(defined, 1.0 + ahead.sum(axis=1), np.nan)


def _whole(value: float) -> int | None:
    return int(value) if np.isfinite(value) else None
