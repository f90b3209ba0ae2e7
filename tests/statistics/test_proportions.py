from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from latentgym.errors import LatentGymError
from latentgym.statistics import barnard, holm, mcnemar, newcombe_interval, wilson_interval


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


def test_newcombe_paired_agrees_with_a_published_example() -> None:
    # Fagerland, Lydersen & Laake 2013 (BMC Med Res Methodol 13:91), airway hyper-responsiveness before and after
    # stem cell transplantation, Newcombe's square-and-add interval.
    assert newcombe_interval(*table(1, 1, 7, 12)) == pytest.approx((-0.507, -0.026), abs=5e-4)
    # Their exact conditional McNemar test of the same table.
    assert mcnemar(*table(1, 1, 7, 12)) == pytest.approx(0.0703, abs=5e-5)


def test_counts_stand_for_outcomes() -> None:
    x, y = outcomes(7, 12), outcomes(8, 10)
    assert newcombe_interval(7, 12, 8, 10) == newcombe_interval(x, y, paired=False)
    assert barnard(7, 12, 8, 10) == barnard(x, y)
    assert mcnemar(9, 1) == mcnemar(*table(20, 9, 1, 20))
    for call in (newcombe_interval, barnard):
        with pytest.raises(LatentGymError, match="successes"):
            call(7, 12, 11, 10)
        with pytest.raises(LatentGymError, match="twice"):
            call(7, 12, 8)
    with pytest.raises(LatentGymError, match="at least 0"):
        mcnemar(3, -1)


def test_newcombe_independent_covers_at_its_level() -> None:
    rng = np.random.default_rng(2)
    for trials, (p, q) in itertools.product((20, 50), ((0.5, 0.5), (0.9, 0.6), (0.1, 0.3))):
        drawn = zip(rng.binomial(trials, p, 500), rng.binomial(trials, q, 500), strict=True)
        intervals = [newcombe_interval(int(a), trials, int(b), trials) for a, b in drawn]
        assert 0.92 < np.mean([low <= p - q <= high for low, high in intervals]) < 0.995, (trials, p, q)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_tests_do_not_care_which_policy_comes_first(m: int, n: int, data: st.DataObject) -> None:
    a, b = data.draw(st.integers(0, m)), data.draw(st.integers(0, n))
    assert barnard(a, m, b, n) == pytest.approx(barnard(b, n, a, m), abs=1e-6)
    assert mcnemar(a, b) == mcnemar(b, a)
    assert 0 <= mcnemar(a, b) <= 1


@given(st.integers(0, 60), st.sampled_from([0.5, 0.8, 0.9]))
def test_wilson_grows_with_its_level_and_with_success(successes: int, level: float) -> None:
    low, high = wilson_interval(successes, 60, level)
    wide = wilson_interval(successes, 60, level + 0.09)
    assert wide[0] <= low <= high <= wide[1]
    if successes < 60:
        more = wilson_interval(successes + 1, 60, level)
        assert more[0] > low and more[1] > high


def test_newcombe_paired_without_correlation_equals_independent() -> None:
    # A table whose phi is zero.
    first, second = table(10, 10, 10, 10)
    assert newcombe_interval(first, second) == pytest.approx(newcombe_interval(first, second, paired=False))
