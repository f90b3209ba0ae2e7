from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgym.errors import LatentGymError
from latentgym.statistics import comparison_power, mcnemar, required_episodes
from latentgym.statistics.power import _score_power


def test_textbook_sample_sizes() -> None:
    # Fleiss, Levin & Paik (2003), without continuity correction: 0.5 against 0.6 needs 388 per group.
    assert _score_power(387, 0.5, 0.6, 0.95) < 0.8 <= _score_power(388, 0.5, 0.6, 0.95)
    assert required_episodes(0.1).episodes == pytest.approx(388, rel=0.02)
    # 0.25 against 0.40 at 90 %: 203 per group.
    assert _score_power(202, 0.25, 0.4, 0.95) < 0.9 <= _score_power(203, 0.25, 0.4, 0.95)
    assert required_episodes(0.15, rate=0.25, power=0.9).episodes == pytest.approx(203, rel=0.02)


@pytest.mark.parametrize(("rate", "other"), [(0.95, 1.0), (0.02, 0.1), (0.0, 0.0115)])
def test_rates_near_the_ends_are_planned_exactly(rate: float, other: float) -> None:
    plan = required_episodes(other - rate, rate=rate)
    assert plan.method == "exact" and plan.power >= 0.8
    assert comparison_power(plan.episodes - 1, other - rate, rate=rate).power < 0.8


def test_exact_power_of_mcnemar_is_that_of_simulation() -> None:
    rng, n = np.random.default_rng(0), 50
    hard = rng.random((1500, n)) < 0.4
    # Outcomes given the initial state are independent; hard states fail both.
    first, second = (np.where(hard, 0.2, rate) > rng.random(hard.shape) for rate in (0.6, 0.95))
    p, q, both = 0.2 * 0.4 + 0.6 * 0.6, 0.2 * 0.4 + 0.95 * 0.6, 0.4 * 0.04 + 0.6 * 0.57
    phi = (both - p * q) / np.sqrt(p * (1 - p) * q * (1 - q))
    exact = comparison_power(n, q - p, rate=p, paired=True, correlation=phi).power
    found = np.mean([mcnemar(a, b) <= 0.05 for a, b in zip(first, second, strict=True)])
    assert exact == pytest.approx(found, abs=0.04)


def test_exact_power_of_barnard_is_that_of_scipys_test() -> None:
    n, p, q = 8, 0.2, 0.8
    rejected = np.array([[scipy.stats.barnard_exact([[a, b], [n - a, n - b]]).pvalue <= 0.05 if 0 < a + b < 2 * n
                          else False for b in range(n + 1)] for a in range(n + 1)])  # fmt: skip
    mass = np.outer(*(scipy.stats.binom.pmf(np.arange(n + 1), n, rate) for rate in (p, q)))
    assert comparison_power(n, q - p, rate=p).power == pytest.approx((mass * rejected).sum(), abs=1e-6)


def test_where_enumeration_ends_the_approximation_takes_over_smoothly() -> None:
    exact, normal = (comparison_power(n, 0.1) for n in (500, 501))
    assert (exact.method, normal.method) == ("exact", "normal approximation")
    assert exact.power == pytest.approx(normal.power, abs=0.015)


@settings(deadline=None, max_examples=15)
@given(st.sampled_from([0.15, 0.2, 0.3]), st.sampled_from([0.2, 0.5, 0.6]), st.booleans())
def test_power_is_reached_and_larger_effects_need_fewer(effect: float, rate: float, paired: bool) -> None:
    plan = required_episodes(effect, rate=rate, paired=paired)
    assert plan.power >= 0.8
    assert required_episodes(effect + 0.1, rate=rate, paired=paired).episodes < plan.episodes
    assert required_episodes(effect, rate=rate, paired=paired, power=0.9).episodes > plan.episodes
    # Either policy may come first.
    mirrored = required_episodes(-effect, rate=rate + effect, paired=paired)
    assert mirrored.episodes == pytest.approx(plan.episodes, abs=1)


def test_pairs_that_agree_save_episodes() -> None:
    needed = [required_episodes(0.15, paired=True, correlation=c).episodes for c in (0.0, 0.3, 0.6)]
    assert needed == sorted(needed, reverse=True)
    assert needed[2] < needed[0] / 2


@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
def test_power_of_mcnemar_is_the_sum_over_every_number_of_discordant_pairs(level: float) -> None:
    episodes, discordant = 700, 0.42
    pairs = np.arange(episodes + 1)
    rarest = scipy.stats.binom.ppf((1 - level) / 2, pairs, 0.5)
    rarest -= scipy.stats.binom.cdf(rarest, pairs, 0.5) > (1 - level) / 2
    share = (discordant / 2 + 0.05) / discordant
    found = scipy.stats.binom.cdf(rarest, pairs, share) + scipy.stats.binom.cdf(rarest, pairs, 1 - share)
    expected = (scipy.stats.binom.pmf(pairs, episodes, discordant) * found).sum()
    # Outcomes of correlation 0 at rates p and p + 0.1 with p (0.9 - p) + (p + 0.1) (1 - p) = 0.42.
    rate = (1.8 - (1.8**2 - 8 * 0.32) ** 0.5) / 4
    plan = comparison_power(episodes, 0.1, rate=rate, level=level, paired=True)
    assert plan.power == pytest.approx(expected, abs=1e-12)


def test_small_effects_are_planned_and_tiny_ones_refused() -> None:
    plan = required_episodes(0.005, paired=True)
    # Connor (1987): the variance of a paired difference is the share of discordant pairs, here a half.
    assert plan.episodes == pytest.approx((1.96 + 0.8416) ** 2 * 0.5 / 0.005**2, rel=0.01)
    for paired in (False, True):
        with pytest.raises(LatentGymError, match="more than 10,000,000 episodes"):
            required_episodes(1e-18, paired=paired)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"effect": 0.0}, "effect other than 0"),
        ({"effect": 0.6}, "rates between 0 and 1"),
        ({"effect": 0.1, "power": 1.0}, "power"),
        ({"effect": 0.1, "level": 95}, "level"),
        ({"effect": 0.1, "correlation": 0.5}, "paired"),
        ({"effect": 0.4, "paired": True, "correlation": 0.9}, "allow correlations from"),
    ],
)
def test_plans_that_make_no_sense_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(LatentGymError, match=message):
        required_episodes(**arguments)  # type: ignore[arg-type]
