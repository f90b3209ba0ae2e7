"""Policies under corruption in a study: which are run, what their rows say, and how the report shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentgym.artifacts import read_json, write_json
from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.rollouts.records import EpisodeRecord
from latentgym.statistics import mcnemar
from latentgym.studies.assemble import Measured, all_rows
from latentgym.studies.config import StudyConfig, load_config, parse_config
from latentgym.studies.plan import EncoderUse, SuitePlan, plan_study
from latentgym.studies.report import write_report
from latentgym.studies.study import run_study
from latentgym.studies.summary import select

REACH = "latentgym/TabletopReach-v0"


def config_with(corruptions: list[str], **suite: Any) -> StudyConfig:
    suites = [{"name": "tabletop", "envs": [REACH], "rollouts": 4, "policy_seeds": [0, 1], **suite}]
    settings = {"objectives": ["pixel_autoencoder"], "suites": suites, "rollout": {"corruptions": corruptions}}
    return parse_config({"name": "corrupted", **settings}, "corrupted")


def test_final_checkpoints_that_read_pixels_meet_every_corruption_once() -> None:
    config = config_with(["snow:1", "brightness:2", "snow:3"], checkpoints=[10], pretraining_steps=20)
    (plan,) = plan_study(config, {})
    met = [(use.name, use.checkpoint, policy_seed, condition) for use, _, policy_seed, condition, _ in plan.corrupted]
    conditions = ("snow:1", "snow:3", "brightness:2")
    assert met == [(name, None, 0, c) for name in ("pixel_autoencoder", "random", "pixels") for c in conditions]
    clean = {use.name: cell for use, _, seed, cell in plan.rollouts if seed == 0 and use.checkpoint is None}
    for use, _, _, condition, cell in plan.corrupted:
        assert cell.params["corruption"] == condition
        assert cell.inputs == clean[use.name].inputs
    assert {cell.key for *_, cell in plan.corrupted} <= {cell.key for cell in plan.cells()}


def test_clean_rollouts_keep_their_keys() -> None:
    keys = [
        [cell.key for *_, cell in plan_study(config_with(corruptions), {})[0].rollouts]
        for corruptions in ([], ["snow"])
    ]
    assert keys[0] == keys[1]


def test_corruptions_that_do_not_exist_are_refused() -> None:
    with pytest.raises((LatentGymError, UnknownNameError), match="did you mean 'snow'"):
        config_with(["snw"])
    with pytest.raises(LatentGymError, match="named once"):
        config_with(["snow", "snow:3"])


def test_rows_hold_rates_drops_and_p_values() -> None:
    before = np.array([True] * 30 + [False] * 10)
    under = {"snow:1": before, "snow:5": np.zeros(40, bool), "brightness:3": before & (np.arange(40) % 2 == 0)}
    item = Measured(EncoderUse("pixels"), REACH, [], {}, {0: before, 1: ~before}, under)
    config = config_with(["snow:1", "snow:5", "brightness:3"])
    rows = all_rows(SuitePlan(config.suites[0]), [item], Path(), config)
    found = {(row.metric, row.condition): row for row in rows if row.policy_seed == 0}
    assert found["success_drop", "snow:1"].value == 0
    assert found["success_drop", "snow:5"].value == 0.75
    assert found["success_drop", "snow"].value == 0.375
    assert found["success_drop", "brightness:3"].value == 0.375
    assert found["success_rate", "snow:5"].value == 0
    assert found["success_drop_p_value", "snow:5"].value < 0.001 < found["success_drop_p_value", "snow:1"].value
    drop = found["success_drop", "brightness:3"]
    assert 0 < drop.low < drop.value < drop.high
    # Success under corruption is never taken for success.
    headline = select([row.to_dict() for row in rows], "success_rate", env=REACH)
    assert {(row["policy_seed"], row["condition"]) for row in headline} == {(0, None), (1, None), (None, None)}


def test_crashes_stand_in_rows_of_their_own(tmp_path: Path) -> None:
    config = config_with(["snow:1"])
    (full,) = plan_study(config, {})
    use, env, policy_seed, clean = next(item for item in full.rollouts if item[0].name == "pixels")
    condition, snowy = next((condition, cell) for other, _, _, condition, cell in full.corrupted if other == use)
    plan = SuitePlan(config.suites[0])
    plan.rollouts.append((use, env, policy_seed, clean))
    plan.corrupted.append((use, env, policy_seed, condition, snowy))
    name, _, _, baseline = next(item for item in full.baselines if item[0] == "random")
    plan.baselines.append((name, env, policy_seed, baseline))
    ran, crashed = EpisodeRecord(0, True, 5, 5, 0.0).to_dict(), EpisodeRecord.crashed(1, "died").to_dict()
    for cell, records in ((clean, [ran, ran]), (snowy, [ran, crashed]), (baseline, [crashed] * 2)):
        cell.folder(tmp_path).mkdir(parents=True)
        write_json(cell.folder(tmp_path) / "rollouts.json", {"records": records})
    rows = [row for row in all_rows(plan, [], tmp_path, config) if row.metric == "crashed_rollouts"]
    assert [(row.encoder, row.family, row.condition, row.value, row.n) for row in rows] == [
        ("pixels", "pixels", "snow:1", 1.0, 2),
        ("random policy", "floor", None, 2.0, 2),
    ]


def test_p_values_of_a_task_are_adjusted_together() -> None:
    floor, sure, unsure = np.zeros(20, bool), np.arange(20) < 12, np.arange(20) < 5
    items = [
        Measured(EncoderUse(name), REACH, [], {}, {0: outcome})
        for name, outcome in (("random", floor), ("diffusion", sure), ("next_latent", unsure))
    ]
    config = config_with([])
    rows = all_rows(SuitePlan(config.suites[0]), items, Path(), config)
    found = {row.encoder: row.value for row in rows if row.metric == "success_minus_random_p_value"}
    assert found == {"diffusion": 2 * mcnemar(sure, floor), "next_latent": mcnemar(unsure, floor)}


def test_the_report_shows_drops_over_tasks_and_task_by_task(tmp_path: Path) -> None:
    config = config_with(["snow:1", "snow:5"])
    rows = []
    for env, lost in ((REACH, 10), ("latentgym/TabletopPush-v0", 20)):
        before = np.arange(40) < 30
        under = {"snow:1": before, "snow:5": np.arange(40) < 30 - lost}
        item = Measured(EncoderUse("pixels"), env, [], {}, {0: before}, under)
        rows += all_rows(SuitePlan(config.suites[0]), [item], Path(), config)
    results = {"schema": 1, "study": "corrupted", "rows": [row.to_dict() for row in rows], "link": []}
    write_json(tmp_path / "results.json", results)
    page = write_report(tmp_path).read_text()
    section = page[page.index('id="corrupted-policies"') :].split("</section>")[0]
    assert "snow, all severities" in section
    # 25 and 50 points lost of 75 %: 37.5 on average, 18.75 over both severities.
    assert "drop 38" in section and "drop 19" in section
    assert "drop 25" in section and "drop 50" in section
    assert "Tabletop Push alone" in section


@pytest.mark.slow
def test_a_study_rolls_policies_out_under_corruption(tmp_path: Path) -> None:
    smoke = load_config("smoke")
    suite = smoke.suites[0].model_copy(update={"checkpoints": ()})
    changes = {
        "objectives": ("pixel_autoencoder",),
        "floors": ("random",),
        "references": ("state",),
        "suites": (suite,),
    }
    rollout = smoke.rollout.model_copy(update={"corruptions": ("gaussian_noise:3",)})
    run_study(smoke.model_copy(update={**changes, "rollout": rollout}), tmp_path / "study", workers=1)
    rows = read_json(tmp_path / "study" / "results.json")["rows"]
    drops = [row for row in rows if row["metric"] == "success_drop"]
    assert {row["encoder"] for row in drops} == {"pixel_autoencoder", "random"}
    assert {row["condition"] for row in drops} == {"gaussian_noise:3"}
    assert 'id="corrupted-policies"' in (tmp_path / "study" / "report.html").read_text()
    places = [entry for entry in read_json(tmp_path / "study" / "run.json")["rollouts"] if entry.get("condition")]
    assert len(places) == 2
    assert all((tmp_path / "study" / entry["folder"] / "rollouts.json").is_file() for entry in places)
