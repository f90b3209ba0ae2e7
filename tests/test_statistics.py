from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from latentgym.errors import LatentGymError
from latentgym.statistics import (
    barnard,
    crossed_bootstrap_interval,
    crossed_bootstrap_means,
    hierarchical_bootstrap,
    holm,
    interquartile_mean,
    kendall,
    mcnemar,
    mean_maximum_rank_violation,
    newcombe_interval,
    partial_correlation,
    pearson,
    percentile_interval,
    regret,
    spearman,
    split_half_reliability,
    wilson_interval,
)

few_values = arrays(np.float64, 8, elements=st.integers(-3, 3).map(float))
values = arrays(np.float64, 8, elements=st.floats(-1e3, 1e3, width=32))


def outcomes(successes: int, trials: int) -> list[int]:
    return [1] * successes + [0] * (trials - successes)


def table(both: int, first: int, second: int, neither: int) -> tuple[list[int], list[int]]:
    """Paired outcomes with these counts."""
    return (
        [1] * (both + first) + [0] * (second + neither),
        [1] * both + [0] * first + [1] * second + [0] * neither,
    )


def test_wilson_agrees_with_newcombe_1998() -> None:
    # Newcombe 1998, Stat. Med. 17:857, table I, method 3.
    for (successes, trials), (low, high) in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_covers_at_its_level() -> None:
    rng = np.random.default_rng(0)
    for trials, rate in itertools.product((20, 50, 100), (0.1, 0.5, 0.8)):
        intervals = {k: wilson_interval(k, trials) for k in range(trials + 1)}
        drawn = rng.binomial(trials, rate, size=4000)
        covered = np.mean([intervals[k][0] <= rate <= intervals[k][1] for k in drawn])
        assert 0.925 < covered < 0.985, (trials, rate, covered)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_estimate_and_mirrors(counts: tuple[int, int]) -> None:
    successes, trials = counts
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_impossible_counts(successes: int, trials: int) -> None:
    with pytest.raises(LatentGymError, match="successes"):
        wilson_interval(successes, trials)


def test_wilson_refuses_a_level_in_percent() -> None:
    with pytest.raises(LatentGymError, match="level"):
        wilson_interval(1, 2, level=95)


def test_newcombe_independent_agrees_with_newcombe_1998() -> None:
    # Stat. Med. 17:873, table II, method 10.
    for (a, m, b, n), expected in {
        (56, 70, 48, 80): (0.0524, 0.3339),
        (9, 10, 3, 10): (0.1705, 0.8090),
        (10, 10, 0, 20): (0.6791, 1.0),
    }.items():
        assert newcombe_interval(outcomes(a, m), outcomes(b, n), paired=False) == pytest.approx(expected, abs=5e-5)


def test_newcombe_paired_without_correlation_equals_independent() -> None:
    # A table whose phi is zero.
    first, second = table(10, 10, 10, 10)
    assert newcombe_interval(first, second) == pytest.approx(newcombe_interval(first, second, paired=False))


def test_newcombe_paired_is_narrower_where_policies_agree() -> None:
    first, second = table(40, 8, 2, 40)
    paired, independent = newcombe_interval(first, second), newcombe_interval(first, second, paired=False)
    assert paired[1] - paired[0] < independent[1] - independent[0]
    assert paired[0] < 6 / 90 < paired[1]


def test_newcombe_paired_covers_at_its_level() -> None:
    rng, covered = np.random.default_rng(1), []
    for _ in range(600):
        difficulty = rng.random(50)
        first, second = rng.random(50) < 0.3 + 0.5 * difficulty, rng.random(50) < 0.2 + 0.4 * difficulty
        low, high = newcombe_interval(first, second)
        covered.append(low <= 0.55 - 0.4 <= high)
    assert 0.92 < np.mean(covered) < 0.99


def test_newcombe_paired_refuses_unequal_lengths() -> None:
    with pytest.raises(LatentGymError, match="equally many"):
        newcombe_interval([1, 0], [1, 0, 1])


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.lists(st.booleans(), min_size=1, max_size=30))
def test_newcombe_is_antisymmetric(first: list[bool], second: list[bool]) -> None:
    low, high = newcombe_interval(first, second, paired=False)
    assert newcombe_interval(second, first, paired=False) == pytest.approx((-high, -low))
    assert -1 - 1e-12 <= low <= high <= 1 + 1e-12


def test_mcnemar_is_the_exact_binomial_test_of_discordant_pairs() -> None:
    first, second = table(20, 9, 1, 20)
    assert mcnemar(first, second) == pytest.approx(scipy.stats.binomtest(9, 10).pvalue)
    assert mcnemar([1, 0], [1, 0]) == 1.0


def test_barnard_agrees_with_scipy() -> None:
    assert barnard(outcomes(7, 12), outcomes(8, 10)) == pytest.approx(
        scipy.stats.barnard_exact([[7, 8], [5, 2]]).pvalue
    )
    assert barnard([1, 1], [1]) == 1.0


def test_outcomes_must_be_binary() -> None:
    with pytest.raises(LatentGymError, match="0 or 1"):
        mcnemar([0, 2], [0, 1])


def test_holm_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with pytest.raises(LatentGymError, match="between 0 and 1"):
        holm([1.2])


@given(arrays(np.float64, 6, elements=st.floats(0, 1)))
def test_holm_only_raises_and_keeps_the_order(p_values: np.ndarray) -> None:
    adjusted = holm(p_values)
    assert (adjusted >= p_values).all()
    assert (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p_values, kind="stable")]) >= 0).all()


def test_interquartile_mean() -> None:
    assert interquartile_mean(range(8)) == pytest.approx(scipy.stats.trim_mean(range(8), 0.25))
    # Six values: half of the second and of the fifth belong to the middle half.
    assert interquartile_mean([0, 1, 2, 3, 10, 100]) == pytest.approx((0.5 * 1 + 2 + 3 + 0.5 * 10) / 3)
    assert interquartile_mean([5]) == 5


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(pearson, scipy.stats.pearsonr), (spearman, scipy.stats.spearmanr), (kendall, scipy.stats.kendalltau)],
)
@settings(max_examples=50, deadline=None)
@given(x=few_values, y=few_values)
def test_correlations_agree_with_scipy(ours, theirs, x: np.ndarray, y: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert np.isnan(ours(x, y))
    else:
        assert ours(x, y) == pytest.approx(theirs(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("statistic", [pearson, spearman, kendall])
def test_correlations_are_vectorised_and_leave_out_missing_pairs(statistic) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 3, 9)), rng.normal(size=9)
    x[1, 2, 4], y[0] = np.nan, np.nan
    together = statistic(x, y)
    assert together.shape == (4, 3)
    for index in np.ndindex(4, 3):
        whole = np.isfinite(x[index]) & np.isfinite(y)
        assert together[index] == pytest.approx(statistic(x[index][whole], y[whole]))


def test_a_constant_of_awkward_rounding_does_not_correlate() -> None:
    assert np.isnan(pearson(np.full(7, 0.1) * 3, np.arange(7)))


@given(values)
def test_rank_correlations_ignore_monotone_maps(x: np.ndarray) -> None:
    y = np.arange(8.0)
    for statistic in (spearman, kendall):
        assert statistic(x, y) == pytest.approx(statistic(x, y**3 + 5), nan_ok=True)


def test_partial_correlation_removes_what_a_covariate_explains() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=4000)
    x, y = z + 0.5 * rng.normal(size=4000), z + 0.5 * rng.normal(size=4000)
    assert spearman(x, y) > 0.75
    # Ranks are not quite linear in each other, so a little stays.
    assert abs(partial_correlation(x, y, [z])) < 0.1


def test_partial_correlation_is_that_of_rank_residuals() -> None:
    rng = np.random.default_rng(1)
    x, y, z, w = (scipy.stats.rankdata(v) for v in rng.normal(size=(4, 30)))
    design = np.stack([np.ones(30), z, w], axis=1)
    rest_x, rest_y = (v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x, y))
    assert partial_correlation(x, y, [z, w]) == pytest.approx(pearson(rest_x, rest_y))


def test_partial_correlation_drops_constant_and_repeated_covariates() -> None:
    rng = np.random.default_rng(2)
    x, y, z = rng.normal(size=(3, 12))
    expected = partial_correlation(x, y, [z])
    assert partial_correlation(x, y, [np.ones(12), z, 2 * z]) == pytest.approx(expected)
    assert partial_correlation(x, y, [np.ones(12)]) == pytest.approx(spearman(x, y))


def test_mmrv_by_hand() -> None:
    # Pairs (2, 3) and (1, 4) are ordered wrongly: gaps 0.4 and 0.2; each of the four is in exactly one of them.
    value = mean_maximum_rank_violation(proxy=[1, 3, 4, 0], success=[0.1, 0.8, 0.4, 0.3])
    # i = 1: wrong with 4 (0.2). i = 2: wrong with 3 (0.4). i = 3: with 2 (0.4). i = 4: with 1 (0.2).
    assert value == pytest.approx((0.2 + 0.4 + 0.4 + 0.2) / 4)


@given(few_values, few_values)
def test_mmrv_is_the_formula(proxy: np.ndarray, success: np.ndarray) -> None:
    worst = [
        max(abs(r - q) * ((s > t) != (r > q)) for t, q in zip(proxy, success, strict=True))
        for s, r in zip(proxy, success, strict=True)
    ]
    assert mean_maximum_rank_violation(proxy=proxy, success=success) == pytest.approx(np.mean(worst))
    assert mean_maximum_rank_violation(proxy=success, success=success) == 0


def test_regret_measures_the_choice_on_the_other_half() -> None:
    choosing, measuring = [0.9, 0.5, 0.1], [0.6, 0.7, 0.2]
    assert regret(proxy=[0, 0, 1], choosing=choosing, measuring=measuring) == pytest.approx(0.6 - 0.2)
    assert regret(proxy=[0, 1, 0], choosing=choosing, measuring=measuring) == pytest.approx(0.6 - 0.7)
    # Tied proxies share the choice.
    assert regret(proxy=[1, 0, 1], choosing=choosing, measuring=measuring) == pytest.approx(0.6 - 0.4)


def test_split_half_reliability_predicts_the_correlation_of_whole_tests() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=20_000)
    a, b, c, d = truth + rng.normal(size=(4, 20_000))
    assert split_half_reliability(a, b) == pytest.approx(pearson((a + b) / 2, (c + d) / 2), abs=0.02)
    assert split_half_reliability([1, 2, 3], [1, 2, 3]) == 1.0


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
