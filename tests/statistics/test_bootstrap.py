from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import scipy.stats

from latentgym.errors import LatentGymError
from latentgym.statistics import (
    crossed_bootstrap_interval,
    crossed_bootstrap_means,
    hierarchical_bootstrap,
    interquartile_mean,
    percentile_interval,
    success_interval,
    wilson_interval,
)


def test_interquartile_mean() -> None:
    assert interquartile_mean(range(8)) == pytest.approx(scipy.stats.trim_mean(range(8), 0.25))
    # A quarter of six values is one whole value and a half.
    assert interquartile_mean([0, 1, 2, 3, 10, 100]) == pytest.approx((1 + 2 + 3 + 10) / 4)
    for bad in ([], [1.0, np.nan]):
        with pytest.raises(LatentGymError, match="all of them finite"):
            interquartile_mean(bad)
    assert interquartile_mean([5]) == 5


def test_hierarchical_bootstrap_keeps_clusters_together() -> None:
    families = ["a", "a", "a", "b", "c", "c"]
    runs = ["a1", "a1", "a2", "b1", "c1", "c2"]
    drawn = hierarchical_bootstrap([families, runs], 500, np.random.default_rng(0))
    assert drawn.shape[0] == 500
    for row in drawn:
        items = row[row >= 0]
        # Both checkpoints of run a1 or neither.
        assert (items == 0).sum() == (items == 1).sum()
        # Three families are drawn, each bringing as many runs as it has.
        size = {"a": 2, "b": 1, "c": 2}
        drawn_runs = [families[i] for i in items if i != 1]
        counts = {name: drawn_runs.count(name) / size[name] for name in size}
        assert sum(counts.values()) == 3
        assert all(count == int(count) for count in counts.values())


def test_hierarchical_bootstrap_is_fair_to_families_and_reproducible() -> None:
    levels = [["a", "b", "b", "b"], ["a", "b1", "b2", "b3"]]
    drawn = hierarchical_bootstrap(levels, 4000, np.random.default_rng(3))
    assert np.mean((drawn == 0).sum(axis=1)) == pytest.approx(1, abs=0.05)
    assert np.mean((drawn == 2).sum(axis=1)) == pytest.approx(1, abs=0.1)
    assert np.array_equal(drawn, hierarchical_bootstrap(levels, 4000, np.random.default_rng(3)))
    with pytest.raises(LatentGymError, match="every level"):
        hierarchical_bootstrap([["a"], ["a", "b"]], 1, np.random.default_rng(0))


def test_crossed_bootstrap_is_wider_than_one_over_trials_alone() -> None:
    rng = np.random.default_rng(0)
    policy = np.array([0.2, 0.8, 0.5])[:, None]
    table = rng.random((3, 100)) < policy
    low, high = crossed_bootstrap_interval(table)
    wilson = wilson_interval(int(table.sum()), table.size)
    assert low < table.mean() < high
    assert high - low > 2 * (wilson[1] - wilson[0])


def test_crossed_bootstrap_pairs_columns_of_one_seed() -> None:
    first = np.random.default_rng(0).random((1, 40)) < 0.5
    means = [
        crossed_bootstrap_means(t, 200, rows=np.random.default_rng(r), columns=np.random.default_rng(7))
        for r, t in ((1, first), (2, ~first))
    ]
    assert means[0] + means[1] == pytest.approx(np.ones(200))


def test_percentile_interval() -> None:
    assert percentile_interval(np.arange(1001), 0.9) == pytest.approx((50, 950))
    assert percentile_interval([np.nan, np.nan, 1.0]) == (None, None)


def test_strata_are_kept_and_what_lies_in_them_is_resampled() -> None:
    families = ["a", "a", "a", "b", "b", "b"]
    studies = ["s", "s", "t", "s", "t", "t"]
    runs = list(range(6))
    drawn = hierarchical_bootstrap([families, studies, runs], 500, np.random.default_rng(0), strata={1})
    for resample in drawn:
        chosen = [index for index in resample if index >= 0]
        # Two families are drawn, with each of their studies at its own size.
        assert Counter(studies[index] for index in chosen) in (
            Counter(s=2 + 1, t=1 + 2), Counter(s=4, t=2), Counter(s=2, t=4)
        )  # fmt: skip
    assert not all(sorted(resample) == sorted(drawn[0]) for resample in drawn)
    one = hierarchical_bootstrap([families, ["s"] * 6, runs], 50, np.random.default_rng(1), strata={1})
    np.testing.assert_array_equal(one, hierarchical_bootstrap([families, runs], 50, np.random.default_rng(1)))


@pytest.mark.parametrize("outcome", [0, 1])
def test_rollouts_that_all_end_alike_are_no_certainty(outcome: int) -> None:
    low, high = success_interval(np.full((3, 50), outcome))
    assert (low, high) == wilson_interval(50 * outcome, 50)
    assert high - low > 0.05


def test_the_interval_of_one_policy_is_wilsons_and_of_several_crosses_their_seeds() -> None:
    table = np.random.default_rng(0).integers(0, 2, (3, 40))
    assert success_interval(table[:1]) == success_interval(table[0]) == wilson_interval(int(table[0].sum()), 40)
    assert success_interval(table, seed=4) == crossed_bootstrap_interval(table, seed=4)
