from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from latentgym.errors import LatentGymError
from latentgym.statistics import (
    kendall,
    mean_maximum_rank_violation,
    partial_correlation,
    pearson,
    regret,
    spearman,
    split_half_reliability,
)

few_values = arrays(np.float64, 8, elements=st.integers(-3, 3).map(float))
values = arrays(np.float64, 8, elements=st.floats(-1e3, 1e3, width=32))


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


def test_mmrv_agrees_with_simpler() -> None:
    # SIMPLER (arXiv 2405.05941), "Pick Coke Can", averages of real and of visual matching: MMRV 0.031.
    real = [0.853, 0.920, 0.760, 0.907, 0.293, 0.133]
    simulated = [0.857, 0.710, 0.567, 0.787, 0.170, 0.027]
    assert mean_maximum_rank_violation(proxy=simulated, success=real) == pytest.approx(0.031, abs=5e-4)


@given(few_values, few_values)
def test_mmrv_is_bounded_scales_and_ignores_the_proxys_unit(proxy: np.ndarray, success: np.ndarray) -> None:
    value = mean_maximum_rank_violation(proxy=proxy, success=success)
    assert 0 <= value <= np.ptp(success)
    assert mean_maximum_rank_violation(proxy=np.exp(proxy), success=success) == value
    assert mean_maximum_rank_violation(proxy=proxy, success=2 * success + 1) == pytest.approx(2 * value)


@given(few_values, few_values)
def test_correlations_are_symmetric_bounded_and_flip_their_sign(x: np.ndarray, y: np.ndarray) -> None:
    for statistic in (pearson, spearman, kendall):
        value = statistic(x, y)
        assert statistic(y, x) == pytest.approx(value, nan_ok=True)
        assert statistic(-x, y) == pytest.approx(-value, nan_ok=True)
        assert np.isnan(value) or -1 <= value <= 1


@pytest.mark.parametrize("statistic", [pearson, spearman, kendall])
def test_unequal_lengths_are_refused(statistic) -> None:  # type: ignore[no-untyped-def]
    for other in ([1.0], [1.0, 2.0], 1.0):
        with pytest.raises(LatentGymError, match="equally many values"):
            statistic([1.0, 2.0, 3.0], other)
    with pytest.raises(LatentGymError, match="equally many values"):
        mean_maximum_rank_violation(proxy=[1.0, 2.0, 3.0], success=[1.0])
