"""Bootstraps over nested and crossed clusters, and the robust mean of Agarwal et al. 2021."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from latentgym.errors import LatentGymError
from latentgym.seeding import numpy_generator
from latentgym.statistics.checks import check_level
from latentgym.statistics.proportions import wilson_interval

Floats = NDArray[np.float64]


def interquartile_mean(values: ArrayLike) -> float:
    """Mean without the lowest and the highest quarter of the values, each rounded down to whole values.

    As the authors compute it (Agarwal et al. 2021, arXiv 2108.13264).

    Raises:
        LatentGymError: if there is no value, or one is not finite.

    >>> interquartile_mean([0, 1, 2, 3, 100])
    2.0
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    if x.size == 0 or not np.isfinite(x).all():
        raise LatentGymError("interquartile_mean: expected at least one value, all of them finite")
    return float(scipy.stats.trim_mean(x, 0.25))


def hierarchical_bootstrap(
    levels: Sequence[Sequence[Any]],
    replicates: int,
    generator: np.random.Generator,
    *,
    strata: Collection[int] = (),
) -> NDArray[np.intp]:
    """Indices that resample nested clusters with replacement, the outermost first.

    Every level is resampled within the cluster drawn above it (families, then the pretraining runs of each family);
    items that agree on all levels (checkpoints of one run) are kept together. A level of strata is not resampled: each
    of its clusters is there once in whatever was drawn above it (Davison & Hinkley 1997, section 3.2).

    Args:
        levels: labels per item, one sequence of length N for each level, outermost first.
        replicates: number of resamples R.
        generator: source of all randomness.
        strata: positions in ``levels`` that are strata, such as the studies that runs come from.

    Returns:
        ``(R, M)`` intp: items of each resample, padded on the right with -1 where clusters differ in size.
    """
    labels = [tuple(level) for level in levels]
    if not labels or len({len(level) for level in labels}) != 1 or not labels[0]:
        raise LatentGymError(
            "hierarchical_bootstrap: expected one label per item on every level, and at least one item"
        )
    resampled = [index not in strata for index in range(len(labels))]
    drawn = _draw(np.arange(len(labels[0])), list(zip(labels, resampled, strict=True)), replicates, generator)
    drawn = np.take_along_axis(drawn, np.argsort(drawn < 0, axis=1, kind="stable"), axis=1)
    return drawn[:, : int((drawn >= 0).sum(axis=1).max(initial=1))]


def _draw(
    items: NDArray[np.intp], levels: list[tuple[tuple[Any, ...], bool]], count: int, generator: np.random.Generator
) -> NDArray[np.intp]:
    if not levels:
        return np.tile(items, (count, 1))
    labels, resampled = levels[0]
    names = list(dict.fromkeys(labels[i] for i in items))
    clusters = [np.array([i for i in items if labels[i] == name], dtype=np.intp) for name in names]
    choice = np.tile(np.arange(len(clusters)), (count, 1))
    if resampled:
        choice = generator.integers(len(clusters), size=choice.shape)
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


def success_interval(outcomes: ArrayLike, *, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Interval of the success rate of one trained policy, or of several on the same initial states.

    Wilson's for one; for several :func:`crossed_bootstrap_interval`, except where every rollout ended alike: resamples
    of equal outcomes say nothing, and Wilson's interval over the initial states alone stands in.

    Args:
        outcomes: ``(P, N)`` outcomes, 0 or 1, of P policy seeds on N initial states.
        seed: seed of the bootstrap.
        level: confidence level.

    >>> [round(bound, 2) for bound in success_interval([[1] * 50] * 3)]
    [0.93, 1.0]
    """
    table = np.atleast_2d(np.asarray(outcomes, dtype=np.float64))
    if len(table) > 1 and table.min() < table.max():
        return crossed_bootstrap_interval(table, seed=seed, level=level)
    return wilson_interval(int(table[0].sum()), table.shape[1], level)


def percentile_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float] | tuple[None, None]:
    """Percentile interval of bootstrap replicates; ``(None, None)`` where fewer than half of them are defined."""
    check_level(level)
    x = np.asarray(values, dtype=np.float64).ravel()
    defined = x[np.isfinite(x)]
    if defined.size == 0 or defined.size < x.size / 2:
        return None, None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _counts(generator: np.random.Generator, size: int, replicates: int) -> Floats:
    """How often each of ``size`` items is drawn, per replicate."""
    return generator.multinomial(size, np.full(size, 1 / size), size=replicates).astype(np.float64)
