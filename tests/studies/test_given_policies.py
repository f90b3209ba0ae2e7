"""Policies that a study is given: trained elsewhere, rolled out on the study's own seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latentgym.artifacts import read_json
from latentgym.envs.recording import record
from latentgym.errors import LatentGymError
from latentgym.policies import load_policy, train_rl
from latentgym.rollouts import evaluate, rollout_seeds
from latentgym.studies.cells import Task, run_rollout
from latentgym.studies.config import StudyConfig, parse_config
from latentgym.studies.plan import plan_study
from latentgym.studies.study import _preflight

pytest.importorskip("stable_baselines3")

REACH = "latentgym/TabletopReach-v0"


def config_with(policies: dict[str, list[str]], **suite: Any) -> StudyConfig:
    suites = [{"name": "tabletop", "envs": [REACH], "rollouts": 2, "policies": policies, **suite}]
    return parse_config({"name": "given", "objectives": ["pixel_autoencoder"], "suites": suites}, "given")


def learned(path: Path, seed: int) -> Path:
    options = {"n_steps": 8, "batch_size": 8, "policy_kwargs": {"net_arch": [8]}}
    policy = train_rl(
        REACH, "state", algorithm="ppo", steps=8, seed=seed, env_options={"horizon": 4}, algorithm_options=options
    )
    return policy.save(path)


def test_a_given_policy_is_rolled_out_on_the_seeds_of_the_study(tmp_path: Path) -> None:
    policy = learned(tmp_path / "rl", 0)
    (plan,) = plan_study(config_with({REACH: [str(policy)]}, env_options={"horizon": 4}), {})
    cells = {name: cell for name, _, _, cell in plan.baselines}
    cell = cells["rl"]
    (tmp_path / "out").mkdir()
    run_rollout(Task({**cell.params, "videos": 0}, {}, tmp_path / "out", tmp_path))
    found = read_json(tmp_path / "out" / "rollouts.json")
    assert [record["seed"] for record in found["records"]] == rollout_seeds(0, REACH, 2)
    assert [record["steps"] for record in found["records"]] == [4, 4]
    expected = evaluate(
        REACH, load_policy(policy), rollout_seeds(0, REACH, 2), env_options={"horizon": 4}, batch_size=25
    )
    assert found["records"] == expected.to_dict()["records"]


def test_given_policies_go_by_their_whole_names(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("v1.0", "v1.1", "sb3.zip")]
    for path in paths:
        path.write_text("weights")
    (plan,) = plan_study(config_with({REACH: list(map(str, paths))}), {})
    assert {"v1.0", "v1.1", "sb3"} <= {name for name, _, _, _ in plan.baselines}


def test_policies_are_rolled_out_on_frames_of_the_size_of_given_data(tmp_path: Path) -> None:
    record(REACH, tmp_path / "data", episodes=2, image_size=32, policy="random", env_options={"horizon": 2})
    (plan,) = plan_study(config_with({}, data=str(tmp_path / "data")), {})
    assert {cell.params["image_size"] for _, _, _, cell in plan.baselines} == {32}


def test_data_that_stand_for_an_environment_of_another_suite(tmp_path: Path) -> None:
    record(REACH, tmp_path / "data", episodes=2, image_size=32, policy="random", env_options={"horizon": 2})
    suites = [
        {"name": "one", "envs": [REACH], "rollouts": 0},
        {"name": "two", "envs": ["given"], "rollouts": 0, "data": str(tmp_path / "data")},
    ]
    config = parse_config({"name": "given", "objectives": ["pixel_autoencoder"], "suites": suites}, "given")
    with pytest.raises(LatentGymError, match=f"one suite only, found twice: {REACH}; data stand for"):
        _preflight(config)


def test_another_policy_at_the_same_place_is_another_cell(tmp_path: Path) -> None:
    keys = []
    for seed in (0, 1):
        path = learned(tmp_path / str(seed) / "rl", seed)
        path.rename(tmp_path / "rl")
        (plan,) = plan_study(config_with({REACH: [str(tmp_path / "rl")]}), {})
        keys.append(next(cell.key for name, _, _, cell in plan.baselines if name == "rl"))
        (tmp_path / "rl").rename(tmp_path / f"old-{seed}")
    assert keys[0] != keys[1]


def test_bad_policies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LatentGymError, match="there is no policy"):
        plan_study(config_with({REACH: [str(tmp_path / "nothing")]}), {})
    with pytest.raises(LatentGymError, match="did you mean"):
        config_with({"latentgym/TabletopReech-v0": ["x"]})
    with pytest.raises(LatentGymError, match="rollouts is 0"):
        config_with({REACH: ["x"]}, rollouts=0)


def test_a_head_is_one_study_under_both_its_names() -> None:
    configs = [
        parse_config(
            {
                "name": "s",
                "objectives": ["pixel_autoencoder"],
                "suites": [{"name": "t", "envs": [REACH]}],
                "policy": {"head": head},
            },
            "s",
        )
        for head in ("act", "action_chunking")
    ]
    assert configs[0] == configs[1]
