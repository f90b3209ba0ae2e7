from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from latentgym.envs import make_env
from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.policies import ExpertPolicy, Policy, RandomPolicy
from latentgym.rollouts import CorruptionReport, Drop, evaluate, evaluate_corrupted
from latentgym.rollouts.corruption import success_drops
from latentgym.statistics import holm, mcnemar, newcombe_interval

REACH = "latentgym/TabletopReach-v0"
WALK = "latentgym-tests/Walk-v0"
FAST = {"env_options": {"horizon": 12, "image_size": 16}, "batch_size": 4}


class Photophobe(ExpertPolicy):
    """The expert, but it stands still once what it sees is brighter than the clean frame of the row's first step."""

    needs_pixels = True
    limit = 0.0

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        dazzled = observation["pixels"].mean(axis=(1, 2, 3)) > self.limit
        return np.where(dazzled[:, None], 0, super().act(observation)).astype(np.float32)


def dazzled_above(quantile: float) -> Photophobe:
    """A policy that about half of the brightened episodes dazzle."""
    env = make_env(REACH, image_size=16, corruption="brightness:1")
    policy = Photophobe()
    policy.limit = float(np.quantile([env.reset(seed=seed)[0]["pixels"].mean() for seed in range(16)], quantile))
    return policy


def report_of(conditions: Sequence[str], **options: Any) -> CorruptionReport:
    return evaluate_corrupted(
        REACH, dazzled_above(0.5), range(16), corruptions=conditions, **{**FAST, "stop_at_success": True, **options}
    )


def test_drops_are_clean_minus_corrupted_with_paired_intervals() -> None:
    report = report_of(["brightness", "contrast:1"], severities=[1, 5])
    clean = [record.success for record in report.clean.records]
    assert list(report.corrupted) == ["brightness:1", "brightness:5", "contrast:1"]
    names = [(drop.factor, drop.severity) for drop in report.drops]
    assert names == [("brightness", 1), ("brightness", 5), ("brightness", None), ("contrast", 1)]
    p_values = []
    for drop in report.drops:
        if drop.severity is None:
            continue
        evaluation = report.corrupted[f"{drop.factor}:{drop.severity}"]
        assert [record.seed for record in evaluation.records] == [record.seed for record in report.clean.records]
        found = [record.success for record in evaluation.records]
        assert drop.drop == pytest.approx(np.mean(clean) - np.mean(found))
        assert (drop.low, drop.high) == newcombe_interval(clean, found)
        assert (drop.successes, drop.episodes) == (sum(found), 16)
        p_values.append(mcnemar(clean, found))
    assert [drop.p_value for drop in report.drops if drop.severity] == holm(p_values).tolist()
    mild, strong, mean, _ = report.drops
    assert strong.drop > mild.drop > 0, "brighter frames dazzle more episodes"
    assert mean.drop == pytest.approx((mild.drop + strong.drop) / 2)
    assert mean.low <= mean.drop <= mean.high
    assert mean.p_value is None


def test_corruption_belongs_to_the_episode_not_to_its_company() -> None:
    options: dict[str, Any] = {"corruption": "gaussian_noise:5", "env_options": FAST["env_options"]}
    policy = dazzled_above(0.5)
    together = evaluate(REACH, policy, seeds=[3, 4, 5, 6, 7], batch_size=2, **options).records
    alone = evaluate(REACH, policy, seeds=[7, 3], batch_size=1, **options).records
    assert {record.seed: record for record in together}[7] == alone[0]
    assert {record.seed: record for record in together}[3] == alone[1]


def test_a_harmless_corruption_costs_nothing() -> None:
    policy = dazzled_above(1.0)
    policy.limit = 256.0
    report = evaluate_corrupted(REACH, policy, range(6), corruptions=["snow"], **FAST)
    assert [dataclasses.astuple(drop)[:2] for drop in report.drops] == [("snow", 3)]
    assert report.corrupted["snow:3"].records == report.clean.records
    assert report.drops[0].drop == 0
    assert report.drops[0].low < 0 < report.drops[0].high
    assert report.drops[0].p_value == 1


def test_a_report_as_json_rows_and_text() -> None:
    counted: list[tuple[int, int]] = []
    report = report_of(["brightness"], severities=[1, 2], progress=lambda done, total: counted.append((done, total)))
    assert counted == [(done, 48) for done in range(1, 49)]
    data = report.to_dict()
    assert [Drop(**drop) for drop in data["drops"]] == list(report.drops)
    assert data["corrupted"]["brightness:2"]["summary"]["episodes"] == 16
    rows = report.to_rows(encoder="pixels")
    found = {(row.metric, row.condition): row for row in rows}
    assert found["success_drop", "brightness:1"].value == report.drops[0].drop
    assert found["success_drop", "brightness"].n == 32
    assert found["success_rate", "brightness:2"].value == report.drops[1].success_rate
    assert found["success_rate", None].value == report.clean.summary.success_rate
    assert found["success_drop_p_value", "brightness:2"].value == report.drops[1].p_value
    assert ("success_drop_p_value", "brightness") not in found
    under = report.corrupted["brightness:1"].summary
    assert (found["success_rate", "brightness:1"].low, found["success_rate", "brightness:1"].high) == (
        under.low, under.high
    )  # fmt: skip
    lines = report.describe().splitlines()
    assert lines[3].split()[:2] == ["brightness:1", f"{report.drops[0].successes}/16"]
    assert lines[5].startswith("brightness (mean)")


def test_bad_choices_are_refused() -> None:
    policy: Policy = dazzled_above(0.5)
    with pytest.raises(UnknownNameError, match="did you mean 'snow'"):
        evaluate_corrupted(REACH, policy, corruptions=["snw"])
    with pytest.raises(LatentGymError, match="severities are 1 … 5, found 6"):
        evaluate_corrupted(REACH, policy, corruptions=["snow"], severities=[6])
    with pytest.raises(LatentGymError, match="none twice"):
        evaluate_corrupted(REACH, policy, corruptions=["snow", "snow:3"])
    with pytest.raises(LatentGymError, match="at least one"):
        evaluate_corrupted(REACH, policy, corruptions=[], severities=[2])
    with pytest.raises(LatentGymError, match="reads no frames"):
        evaluate_corrupted(REACH, ExpertPolicy(), corruptions=["snow"])
    with pytest.raises(LatentGymError, match="reads no frames"):
        evaluate(REACH, ExpertPolicy(), corruption="snow:3")
    with pytest.raises(LatentGymError, match="already"):
        evaluate_corrupted(REACH, policy, corruptions=["snow"], env_options={"corruption": "snow:1"})


def test_a_mean_drop_of_alike_outcomes_has_a_width() -> None:
    before = np.ones(12, bool)
    for after, value in ((before, 0.0), (~before, 1.0)):
        (*_, mean) = success_drops(before, {"snow:1": after, "snow:3": after})
        assert mean.severity is None and mean.drop == value
        assert mean.low < value - 0.05 if value else mean.high > 0.05
        assert mean.low <= value <= mean.high


def test_crashes_under_a_corruption_are_counted_and_said(tmp_path: Path) -> None:
    options = {"faults": {"3": "raise", "5": "raise"}, "folder": str(tmp_path), "image_size": 16}
    report = evaluate_corrupted(WALK, Seeing(), range(6), corruptions=["snow:1", "snow:3"], env_options=options)
    assert [(drop.severity, drop.crashed) for drop in report.drops] == [(1, 2), (3, 2), (None, 4)]
    assert "2 crashed and count as failed" in report.describe()
    assert "2 crashed twice and count as failed, seed 3 first: " in report.clean.describe()


class Seeing(RandomPolicy):
    needs_pixels = True
