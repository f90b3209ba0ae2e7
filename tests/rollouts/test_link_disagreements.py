from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from latentgym.rollouts import LinkPoint
from latentgym.rollouts.link_disagreements import Disagreement, disagreements


def points(rates: list[int], proxies: list[float], n: int = 100, spread: float = 0.0) -> list[LinkPoint]:
    rng = np.random.default_rng(0)
    return [
        LinkPoint(
            env="e",
            encoder=f"encoder{i}",
            family=str(i),
            proxies={"r2": proxy},
            proxy_replicates={"r2": (proxy + spread * rng.normal(size=200)).tolist()} if spread else {},
            success=[rng.permutation(np.arange(n) < rate).astype(int).tolist()],
        )
        for i, (rate, proxy) in enumerate(zip(rates, proxies, strict=True))
    ]


def test_what_the_probe_flatters_comes_first_and_is_clear_where_ranges_part() -> None:
    first, *rest = disagreements(points([10, 50, 90], [0.9, 0.5, 0.4]))
    assert first == Disagreement("e", "encoder0", 0, "r2", 0.9, 1, 1, 1, 0.1, 3, 3, 3, 3, True)
    assert first.gap == 1
    assert [(item.encoder, item.gap) for item in rest] == [("encoder2", -1), ("encoder1", 0)]


def test_few_rollouts_and_noisy_proxies_leave_it_open() -> None:
    few = {item.encoder: item for item in disagreements(points([4, 5, 6], [0.9, 0.5, 0.4], n=10))}["encoder0"]
    assert (few.rank, few.success_rank, few.success_low, few.clear) == (1, 3, 1, False)
    (noisy, *_) = disagreements(points([10, 50, 90], [0.52, 0.51, 0.5], spread=0.3))
    assert noisy.high is not None and noisy.high > 1 and not noisy.clear


def test_agreement_ties_checkpoints_and_missing_proxies() -> None:
    agreeing = points([10, 50, 50], [0.1, 0.7, 0.7])
    assert {item.gap for item in disagreements(agreeing)} == {0}
    assert sorted(item.rank for item in disagreements(agreeing)) == [1, 1, 3]
    extra = LinkPoint(env="e", encoder="x", family="x", proxies={"psnr_db": 20.0}, success=[[1, 0]])
    early = LinkPoint(env="e", encoder="encoder0", family="0", checkpoint=5, proxies={"r2": 9.0}, success=[[1, 0]])
    assert disagreements([*agreeing, extra, early]) == disagreements(agreeing)


def test_equal_success_everywhere_ranks_nobody() -> None:
    assert disagreements(points([0, 0, 0], [0.9, 0.5, 0.4])) == []


def with_replicates(replicates: list[list[float]]) -> list[LinkPoint]:
    found = points([10, 50, 90], [0.9, 0.5, 0.4])
    return [
        dataclasses.replace(point, proxy_replicates={"r2": own}) for point, own in zip(found, replicates, strict=True)
    ]


def test_resamples_that_leave_a_proxy_undefined_rank_nothing() -> None:
    defined = [[0.9] * 6, [0.5] * 6, [0.4] * 6]
    undefined = [[*own, math.nan, math.nan] for own in defined]
    assert disagreements(with_replicates(undefined)) == disagreements(with_replicates(defined))
    # Undefined for one run alone, the others are ranked among themselves.
    (first, *_) = disagreements(with_replicates([defined[0], [0.5] * 3 + [math.nan] * 3, defined[2]]))
    assert (first.encoder, first.low, first.high, first.clear) == ("encoder0", 1, 1, True)


def test_a_proxy_that_is_mostly_undefined_has_no_range() -> None:
    mostly = [[value] + [math.nan] * 5 for value in (0.9, 0.5, 0.4)]
    for replicates in (mostly, [[math.nan] * 6] * 3):
        for item in disagreements(with_replicates(replicates)):
            assert (item.low, item.high, item.clear) == (None, None, False)
            assert item.success_low is not None and item.success_low <= item.success_rank
    (first, *_) = disagreements(with_replicates(mostly))
    assert (first.encoder, first.rank) == ("encoder0", 1)


def test_no_value_and_no_replicates() -> None:
    found = points([10, 50, 90], [0.9, 0.5, math.nan])
    assert {(item.encoder, item.n) for item in disagreements(found)} == {("encoder0", 2), ("encoder1", 2)}
    assert disagreements(with_replicates([[], [], []])) == disagreements(points([10, 50, 90], [0.9, 0.5, 0.4]))


def test_equal_seeds_give_equal_ranges() -> None:
    found = points([30, 40, 50], [0.5, 0.4, 0.3], spread=0.1)
    assert disagreements(found, seed=1) == disagreements(found, seed=1)
    assert disagreements(found)[0].n == pytest.approx(3)
