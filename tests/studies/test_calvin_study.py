"""The CALVIN study: the shipped file, and the same file on a folder in CALVIN's format by changing one path."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentgym.envs.recording import record
from latentgym.errors import LatentGymError
from latentgym.studies.config import StudyConfig, load_config, parse_config
from latentgym.studies.study import run_study


def test_both_suites_hold_the_same_share_of_random_actions() -> None:
    calvin, metaworld = load_config("calvin").suites
    assert calvin.random_fraction == metaworld.random_fraction > 0
    assert calvin.policy == metaworld.policy and calvin.env_options["cameras"] == ["static"]
    assert calvin.chains > 0 and calvin.condition == "instruction"


def test_there_are_as_many_demonstrations_as_it_asks_for() -> None:
    """Seven in ten of the episodes that are not random are training demonstrations."""
    for suite in load_config("calvin").suites:
        demonstrations = suite.episodes - int(suite.episodes * suite.random_fraction)
        assert int(0.7 * demonstrations) >= suite.demonstrations


def small(config: StudyConfig, **suite: Any) -> StudyConfig:
    """One objective and the CALVIN suite alone, a few steps of everything."""
    calvin = config.suites[0].model_copy(update={"pretraining_steps": 2, **suite})
    return config.model_copy(
        update={
            "suites": (calvin,),
            "objectives": ("next_latent",),
            "floors": ("random",),
            "references": ("state",),
            "probe": config.probe.model_copy(update={"mlp_steps": 2, "replicates": 10, "horizons": (1,)}),
            "fidelity": config.fidelity.model_copy(update={"steps": 2}),
            "policy": config.policy.model_copy(update={"steps": 5}),
            "rollout": config.rollout.model_copy(update={"batch_size": 2, "videos": 0}),
        }
    )


def on_data(path: Path, folder: Path) -> StudyConfig:
    """The shipped file with its one path changed, then made small."""
    text = (resources.files("latentgym.studies") / "presets" / "calvin.toml").read_text()
    path.write_text(text.replace('data = ""', f'data = "{folder}"'))
    return small(load_config(path))


@pytest.mark.slow
def test_the_study_at_its_least_size(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded, probed, rolled out on single tasks, and on chains of two, with the expert as the proof of both."""
    monkeypatch.setenv("CALVIN_ENV_ROOT", str(shared / "calvin_assets"))
    config = load_config("calvin")
    options = {**config.suites[0].env_options, "horizon": 32, "task": ["turn_on_led", "turn_off_led"]}
    config = small(config, envs=("latentgym/CalvinD-v0",), episodes=10, demonstrations=4, rollouts=2, chains=2,
                   env_options=options, image_size=32)  # fmt: skip
    page = run_study(config, tmp_path, workers=1).read_text()
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    for metric in ("temporal_gain", "success_rate", "chain_success_at_1", "chain_success_at_2", "mean_chain_length"):
        assert {"next_latent", "random"} <= {row["encoder"] for row in rows if row["metric"] == metric}, metric
    expert = {row["metric"]: row for row in rows if row["encoder"] == "expert policy"}
    assert expert["success_rate"]["value"] == 1 and expert["mean_chain_length"]["value"] == 2
    assert expert["chain_success_at_2"]["n"] == 2
    assert "Chains of instructions" in page and "What needs time" not in page, "there is one benchmark only"
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["provenance"]["gl"] == {"backend": "pybullet-tiny"}


def test_both_suites_record_temporally_independent_actions_alike(shared: Path, tmp_path: Path) -> None:
    """The shares come from one behaviour; in CALVIN's recordings both kinds are really there."""
    suite = load_config("calvin").suites[0]
    options = {**suite.env_options, "assets": str(shared / "calvin_assets"), "pixels": False}
    dataset = record(
        suite.envs[0], tmp_path / "d", episodes=12, random_fraction=0.9, env_options=options, image_size=16
    )
    memory = [
        np.corrcoef(action[1:, :6].ravel(), action[:-1, :6].ravel())[0, 1]
        for index in range(len(dataset))
        if dataset.policies[index] == "random"
        for action in [dataset.episode(index, ()).action]
    ]
    independent = np.abs(memory) < 0.2
    assert 0 < independent.mean() < 1 and all(np.array(memory)[~independent] > 0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"envs": ["latentgym/CalvinA-v0"]}, "must be among envs"),
        ({"rollouts": 0}, "with rollouts"),
        ({"env_options": {"task": "turn_on_led"}}, "name more tasks"),
        ({"env_options": {"task": ["dance", "turn_on_led"]}}, "unknown CALVIN task"),
        ({"condition": "goal"}, "condition"),
    ],
)
def test_chains_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    suite = load_config("calvin").suites[0].model_dump()
    with pytest.raises(LatentGymError, match=message):
        parse_config({"name": "x", "objectives": ["next_latent"], "suites": [{**suite, **change}]}, "x.toml")


@pytest.mark.slow
def test_the_study_runs_on_a_calvin_folder_by_changing_one_path(shared: Path, tmp_path: Path) -> None:
    config = on_data(tmp_path / "mine.toml", shared / "calvin_debug")
    with pytest.warns(UserWarning, match="several scenes"):
        report = run_study(config, tmp_path / "out", workers=1)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    gains = {row["encoder"] for row in results["rows"] if row["metric"] == "temporal_gain"}
    assert report.is_file() and {"next_latent", "random"} <= gains
    assert {row["env"] for row in results["rows"] if row["metric"] == "action_r2"} == {"calvin-ABCD"}
