from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgym.errors import LatentGymError
from latentgym.statistics import (
    SequentialComparison,
    anytime_difference_interval,
    anytime_interval,
    wilson_interval,
)


def run(rng: np.random.Generator, maximum: int, first: float, second: float) -> SequentialComparison:
    test = SequentialComparison(maximum)
    while test.verdict == "continue":
        test.update(bool(rng.random() < first), bool(rng.random() < second))
    return test


def test_equal_policies_are_seldom_told_apart_and_never_past_the_maximum() -> None:
    rng = np.random.default_rng(0)
    runs = [run(rng, 40, 0.5, 0.5) for _ in range(500)]
    wrong = np.mean([test.verdict != "undecided" for test in runs])
    # At most 5 % by construction; all pairs discordant would be the worst case.
    assert wrong < 0.06
    assert max(test.pairs for test in runs) <= 40


def test_a_clear_difference_stops_early_with_the_right_sign() -> None:
    rng = np.random.default_rng(1)
    runs = [run(rng, 100, 0.2, 0.8) for _ in range(100)]
    assert np.mean([test.verdict == "second" for test in runs]) > 0.97
    assert np.mean([test.pairs for test in runs]) < 35


def test_it_stops_where_nothing_could_decide_any_more_and_then_refuses() -> None:
    test = SequentialComparison(maximum=10)
    verdicts = []
    while test.verdict == "continue":
        verdicts.append(test.update(True, True))
    assert test.verdict == "undecided" and test.pairs < 10
    with pytest.raises(LatentGymError, match="ended"):
        test.update(True, False)


@pytest.mark.parametrize(("maximum", "level"), [(0, 0.95), (3, 0.95), (50, 95)])
def test_plans_that_cannot_work_are_refused(maximum: int, level: float) -> None:
    with pytest.raises(LatentGymError):
        SequentialComparison(maximum, level)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_anytime_interval_holds_the_estimate_mirrors_and_is_wider_than_wilson(counts: tuple[int, int]) -> None:
    successes, trials = counts
    low, high = anytime_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert anytime_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-9)
    wilson = wilson_interval(successes, trials)
    assert high - low > wilson[1] - wilson[0]


def test_anytime_interval_holds_at_every_look_at_once() -> None:
    rng, missed = np.random.default_rng(2), 0
    for _ in range(100):
        successes = np.cumsum(rng.random(60) < 0.3)
        looks = [anytime_interval(int(k), n) for n, k in enumerate(successes, 1)]
        missed += any(not low <= 0.3 <= high for low, high in looks)
    assert missed <= 8


def test_anytime_difference_holds_at_every_look_at_once() -> None:
    rng, missed = np.random.default_rng(3), 0
    for _ in range(60):
        first, second = rng.random(40) < 0.7, rng.random(40) < 0.4
        looks = [anytime_difference_interval(first[:n], second[:n]) for n in range(2, 41, 2)]
        missed += any(not low <= 0.3 <= high for low, high in looks)
    assert missed <= 6


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_anytime_difference_is_antisymmetric_and_holds_the_estimate(pairs: list[tuple[bool, bool]]) -> None:
    first, second = zip(*pairs, strict=True)
    low, high = anytime_difference_interval(first, second)
    assert -1 <= low <= np.mean(first) - np.mean(second) <= high <= 1
    assert anytime_difference_interval(second, first) == pytest.approx((-high, -low), abs=1e-9)


def test_anytime_intervals_refuse_what_makes_no_sense() -> None:
    with pytest.raises(LatentGymError, match="successes"):
        anytime_interval(3, 2)
    with pytest.raises(LatentGymError, match="equally many"):
        anytime_difference_interval([1], [1, 0])
