"""A claims study at its least size: no policies, corrupted clips, claims in the results and on the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latentgym.artifacts import read_json
from latentgym.errors import LatentGymError
from latentgym.studies.claims import claims_of
from latentgym.studies.config import AdaptationSettings, StudyConfig, load_config, parse_config
from latentgym.studies.plan import plan_study
from latentgym.studies.report import write_report
from latentgym.studies.study import run_study

SUITE = {
    "name": "tabletop", "envs": ["latentgym/TabletopReach-v0"], "episodes": 16, "rollouts": 0,
    "pretraining_seeds": [0, 1], "pretraining_steps": 2,
}  # fmt: skip
ABSENT = {"name": "calvin", "envs": ["latentgym/CalvinD-v0"], "env_options": {"assets": "/nowhere"}, "rollouts": 0}


def config(*suites: dict[str, Any]) -> StudyConfig:
    data = {
        "name": "tiny", "claims": True, "suites": list(suites), "references": ["state"], "floors": [],
        "objectives": ["pixel_autoencoder", "masked_video", "inverse_dynamics"],
        "robustness": {"conditions": ["noise_015"], "stresses": ["freeze"]},
        "fidelity": {"steps": 2}, "pretraining": {"batch_size": 4},
        "probe": {"folds": 2, "horizons": [1], "mlp_horizons": [], "controls": ["shuffled_actions"], "replicates": 50},
    }  # fmt: skip
    return parse_config(data, "tiny")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claims")
    with pytest.warns(UserWarning, match="optional suite 'calvin'"):
        run_study(config(SUITE, {**ABSENT, "optional": True}), folder, workers=1)
    return folder


@pytest.mark.slow
def test_claims_stand_in_the_results_and_are_found_again(study: Path) -> None:
    found = read_json(study / "results.json")
    assert set(found) == {"schema", "study", "rows", "link", "claims"}
    assert found["link"] == []
    assert [claim.to_dict() for claim in claims_of(study)] == found["claims"]
    verdicts = {c["claim"]: c["verdict"] for c in found["claims"] if c["benchmark"] == "all" and not c["part"]}
    assert set(verdicts) == set("abcdef") and verdicts["e"] == "not tested"
    (own,) = [c for c in found["claims"] if (c["claim"], c["benchmark"]) == ("a", "all") and c["n_runs"]]
    assert own["n_runs"] == 2 and own["low"] < own["value"] < own["high"]


@pytest.mark.slow
def test_corruption_and_the_front_are_measured_and_nothing_is_rolled_out(study: Path) -> None:
    rows = read_json(study / "results.json")["rows"]
    assert not [row for row in rows if row["metric"] in ("success_rate", "cloning_r2")]
    dropped = {(row["encoder"], row["seed"]) for row in rows if row["metric"] == "r2_drop"}
    assert dropped == {
        (name, seed) for name in ("pixel_autoencoder", "masked_video", "inverse_dynamics") for seed in (0, 1)
    }
    stressed = {(row["encoder"], row["condition"]) for row in rows if row["metric"] == "stress_r2"}
    assert stressed == {(name, "freeze") for name in ("pixel_autoencoder", "masked_video", "inverse_dynamics")}
    front = [row for row in rows if row["metric"] == "pareto_membership"]
    assert len(front) == 3 and all(0 <= row["value"] <= 1 for row in front) and sum(r["value"] for r in front) >= 1
    keys = ("env", "encoder", "seed", "readout", "input", "k", "subset", "dimension", "condition", "metric")
    identities = [tuple(row[key] for key in keys) for row in rows]
    assert len(identities) == len(set(identities))


@pytest.mark.slow
def test_the_page_shows_claims_controls_corruption_and_front(study: Path) -> None:
    page = write_report(study).read_text()
    for section in ("claims", "controls", "robustness", "stressed", "pareto"):
        assert f'<section id="{section}">' in page
    assert "small scale, domain video" in page and "How sure is a place on the front?" in page
    assert "rolls out no policy" in page


def test_an_absent_suite_that_is_not_optional_stops_the_study(tmp_path: Path) -> None:
    with pytest.raises(LatentGymError, match="assets"):
        run_study(config(SUITE, ABSENT), tmp_path)
    with pytest.raises(LatentGymError, match="optional"):
        run_study(config({**ABSENT, "optional": True}), tmp_path)


def test_one_rollout_and_unknown_corruptions_are_refused() -> None:
    with pytest.raises(LatentGymError, match="rollouts"):
        config({**SUITE, "rollouts": 1})
    with pytest.raises(LatentGymError, match="did you mean 'snow'"):
        parse_config({**config(SUITE).model_dump(), "robustness": {"conditions": ["snoww"]}}, "tiny")


def test_the_paper_study_meets_what_its_claims_need() -> None:
    paper = load_config("paper")
    assert all(len(suite.pretraining_seeds) >= 3 and not suite.rollouts for suite in paper.suites)
    assert len({(suite.policy, suite.random_fraction) for suite in paper.suites}) == 1
    cells = [cell for plan in plan_study(paper, {}) for cell in plan.cells()]
    assert {cell.kind for cell in cells} == {"record", "pretrain", "adapt", "fidelity", "floors", "offline"}
    corrupted = [cell for cell in cells if cell.params.get("robustness")]
    trained = len(paper.objectives) + len(paper.adapt)
    assert len(corrupted) == sum(len(s.envs) * (trained * 3 + 4) for s in paper.suites)


def test_adapted_encoders_are_planned_after_their_base_and_must_be_pretrained_here() -> None:
    adapted = config(SUITE).model_copy(update={"adapt": ("masked_video",)})
    (plan,) = plan_study(adapted, {})
    cells = list(plan.cells())
    kinds = [cell.kind for cell in cells]
    assert kinds.count("adapt") == 2
    for cell in cells:
        if cell.kind == "adapt":
            assert cells.index(cell.inputs["encoder"]) < cells.index(cell)
    assert {use.name for use in plan.uses if use.name.endswith("+id")} == {"masked_video+id"}
    controlled = adapted.model_copy(update={"adaptation": AdaptationSettings(control=True)})
    (plan,) = plan_study(controlled, {})
    assert {use.name for use in plan.uses if "+id" in use.name} == {"masked_video+id", "masked_video+id-control"}
    assert len({cell.key for cell in plan.cells() if cell.kind == "adapt"}) == 4
    with pytest.raises(LatentGymError, match="next_latent"):
        parse_config({**config(SUITE).model_dump(mode="json"), "adapt": ["next_latent"]}, "tiny")


@pytest.mark.slow
def test_claim_f_compares_an_encoder_with_its_adapted_self(tmp_path: Path) -> None:
    data = {
        **config(SUITE).model_dump(mode="json"),
        "adapt": ["masked_video"],
        "adaptation": {"steps": 2, "control": True},
    }
    run_study(parse_config(data, "tiny"), tmp_path, workers=1)
    found = read_json(tmp_path / "results.json")
    scores = {
        (row["encoder"], row["env"], row["seed"], row["metric"]): row["value"]
        for row in found["rows"]
        if (row["readout"], row["input"], row["k"], row["subset"]) == ("ridge", "pair", 1, "all")
        and row["dimension"] == "macro"
    }
    lifted = {key: value for key, value in scores.items() if key[3] == "id_lift"}
    assert {key[0] for key in lifted} == {"masked_video+id", "masked_video+id-control"}
    for (name, env, seed, _), value in lifted.items():
        frozen = scores["masked_video", env, seed, "action_r2"]
        assert value == pytest.approx(scores[name, env, seed, "action_r2"] - frozen)
    claims = [claim for claim in found["claims"] if claim["claim"] == "f" and claim["scope"] != "natural video"]
    assert claims and all("trained further" in claim["statistic"] for claim in claims)
