"""CALVIN's chains: the experts on chains of tasks that they solve, and what may not go wrong around them."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from latentgym import cli
from latentgym.encoders import load_encoder
from latentgym.envs import make_env
from latentgym.envs.calvin import initial_state, official_chains
from latentgym.envs.recording import record
from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.policies import ExpertPolicy, train_policy
from latentgym.policies.contract import Policy
from latentgym.rollouts import ChainEvaluation, ChainRecord, evaluate_chains

START = {
    "led": 0, "lightbulb": 0, "slider": "right", "drawer": "closed", "red_block": "table",
    "blue_block": "slider_right", "pink_block": "slider_left", "grasped": 0,
}  # fmt: skip
SOLVED = [
    (START, ["turn_on_led", "open_drawer", "turn_on_lightbulb"]),
    (START, ["move_slider_left", "turn_on_led", "lift_red_block_table"]),
]


@pytest.fixture(autouse=True)
def assets(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALVIN_ENV_ROOT", str(shared / "calvin_assets"))


class Still(Policy):
    """Holds the arm where it is and writes down what it is told."""

    name = "still"
    needs_pixels = False

    def __init__(self) -> None:
        self.resets, self.told, self.robots = 0, [], []

    def reset(self, mask: NDArray[np.bool_], seeds: Sequence[int] | None = None) -> None:
        self.resets += 1

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        self.told.append(str(observation["instruction"][0]))
        self.robots.append(observation["robot_obs"][0])
        return np.array([[0, 0, 0, 0, 0, 0, 1]], np.float32)


def test_experts_complete_chains_of_tasks_that_they_solve() -> None:
    found = evaluate_chains(ExpertPolicy(), SOLVED)
    assert [record.completed for record in found.records] == [3, 3]
    assert all(1 <= steps < 360 for record in found.records for steps in record.steps)
    assert found.mean_length == 3 and [rate.rate for rate in found.success_at] == [1, 1, 1]
    assert found.tasks["turn_on_led"].successes == 2 and found.renderer is None


def test_workers_do_not_change_the_records() -> None:
    chains = [(START, ["turn_on_led"]), (START, ["open_drawer"])]
    assert evaluate_chains(ExpertPolicy(), chains, workers=2) == evaluate_chains(ExpertPolicy(), chains)


def test_a_failure_ends_the_chain_after_the_last_step() -> None:
    policy = Still()
    found = evaluate_chains(policy, SOLVED[:1], steps_per_instruction=4)
    assert found.records[0] == ChainRecord(0, tuple(SOLVED[0][1]), (4,), 0)
    assert policy.resets == 1 and len(policy.told) == 4
    assert set(policy.told) == {"press the button to turn on the led light"}
    assert list(found.tasks) == ["turn_on_led"], "instructions that were never given count nowhere"


def test_every_chain_starts_from_the_official_state() -> None:
    policy, chains = Still(), official_chains(2)
    evaluate_chains(policy, chains, steps_per_instruction=1)
    for (condition, _), robot in zip(chains, policy.robots, strict=True):
        np.testing.assert_allclose(robot[:3], initial_state(condition)[0][:3], atol=2e-3)


def test_the_next_instruction_follows_where_the_arm_stands() -> None:
    """The robot is reset once per chain, and success is judged from each instruction's own beginning."""
    env = make_env("latentgym/CalvinD-v0", pixels=False)
    robot, scene = initial_state(START)
    env.reset(seed=0, options={"robot_obs": robot, "scene_obs": scene})
    for _ in range(5):
        observation, *_ = env.step(np.array([1, 0, 0, 0, 0, 0, 1], np.float32))
    after = env.unwrapped.start_task("open_drawer")
    np.testing.assert_array_equal(after["robot_obs"], observation["robot_obs"])
    assert after["instruction"] == env.unwrapped.contract.instruction == "pull the handle to open the drawer"
    env.close()


def test_lengths_and_rates_count_as_the_benchmark_does() -> None:
    tasks = ("a", "b", "a", "c", "d")
    records = (ChainRecord(0, tasks, (9, 360), 1), ChainRecord(1, tasks, (360,), 0), ChainRecord(2, tasks, (9,) * 5, 5))
    found = ChainEvaluation("policy", records)
    assert [rate.successes for rate in found.success_at] == [2, 1, 1, 1, 1]
    assert found.mean_length == 2
    low, high = found.mean_length_interval() or (9, 0)
    assert 0 <= low < 2 < high <= 5
    assert {task: (rate.successes, rate.trials) for task, rate in found.tasks.items()} == {
        "a": (3, 4), "b": (1, 2), "c": (1, 1), "d": (1, 1)
    }  # fmt: skip
    assert json.loads(json.dumps(found.to_dict()))["mean_length"]["value"] == 2


class Wrecker(Still):
    """Takes the simulator away at some of the steps that it is asked about."""

    def __init__(self, *steps: int) -> None:
        super().__init__()
        self.steps = steps

    def bind(self, envs: Sequence[Any], deliberate: Any = frozenset()) -> None:
        self.env = envs[0]

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        if len(self.told) in self.steps:
            self.env.close()
        return super().act(observation)


def test_a_chain_whose_simulator_fails_once_is_repeated() -> None:
    found = evaluate_chains(Wrecker(3), SOLVED[:1], steps_per_instruction=6)
    assert found == evaluate_chains(Still(), SOLVED[:1], steps_per_instruction=6)


def test_a_chain_whose_simulator_fails_twice_is_reported() -> None:
    found = evaluate_chains(Wrecker(3, 5), SOLVED, steps_per_instruction=6)
    lost, kept = found.records
    assert lost.error is not None and lost.completed == 0 and lost.steps == () and kept.error is None
    assert "1 crashed twice and count as failed, the first by error: " in found.describe()
    assert "error" in found.to_dict()["records"][0] and "error" not in found.to_dict()["records"][1]
    assert found.success_at[0].trials == 2 and "turn_on_led" not in found.tasks


def test_an_environment_that_cannot_be_made_again_costs_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def make(*args: Any, **options: Any) -> Any:
        made.append(None)
        if len(made) == 2:
            raise OSError("no context right now")
        return make_env(*args, **options)

    monkeypatch.setattr("latentgym.rollouts.calvin_chains.make_env", make)
    lost, kept = evaluate_chains(Wrecker(3), SOLVED, steps_per_instruction=6).records
    assert lost.error == "OSError: no context right now" and kept.error is None


@pytest.mark.parametrize("where", ["bind", "reset", "act"])
def test_a_policy_that_fails_ends_the_evaluation(where: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by itself")

    policy = Still()
    setattr(policy, where, fail)
    with pytest.raises(LatentGymError, match="policy 'still' failed: ZeroDivisionError: by itself"):
        evaluate_chains(policy, SOLVED)


def test_an_environment_that_cannot_be_made_ends_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no physics")

    monkeypatch.setattr("latentgym.rollouts.calvin_chains.make_env", fail)
    with pytest.raises(LatentGymError, match="cannot be made: RuntimeError: no physics"):
        evaluate_chains(Still(), SOLVED)
    with pytest.raises(LatentGymError, match="chain_timeout_s positive"):
        evaluate_chains(Still(), SOLVED, chain_timeout_s=0)


def test_other_software_than_the_training_data_had_is_refused(tmp_path: Path) -> None:
    dataset = record(
        "latentgym/CalvinD-v0",
        tmp_path / "data",
        episodes=4,
        policy="expert",
        env_options={"task": "turn_on_led", "pixels": False},
    )
    policy = train_policy(dataset, load_encoder("state"), steps=2, hidden=(8,), demonstrations=1)
    assert policy.training.software is not None
    versions = {**policy.training.software.versions, "pybullet": "0.1"}
    old = dataclasses.replace(policy.training.software, versions=versions)
    policy.training = dataclasses.replace(policy.training, software=old)
    chains, short = [(START, ["turn_on_led"])] * 2, {"steps_per_instruction": 2}
    for workers in (1, 2):
        with pytest.raises(LatentGymError, match=r"pybullet: trained on 0\.1"):
            evaluate_chains(policy, chains, workers=workers, software="refuse", **short)
    with pytest.warns(UserWarning, match="pybullet"):
        evaluate_chains(policy, chains, **short)


def test_chains_of_one_length_leave_the_mean_uncertain() -> None:
    found = ChainEvaluation("policy", tuple(ChainRecord(index, ("a", "b"), (360,), 0) for index in range(5)))
    low, high = found.mean_length_interval() or (9, 0)
    assert low == 0 and 0.5 < high < 1.5


def test_bad_chains_and_options_are_refused() -> None:
    with pytest.raises(LatentGymError, match="1 to 1000"):
        evaluate_chains(ExpertPolicy(), 1001)
    with pytest.raises(LatentGymError, match="at least one chain"):
        evaluate_chains(ExpertPolicy(), [])
    with pytest.raises(UnknownNameError):
        evaluate_chains(ExpertPolicy(), [(START, ["dance"])])
    with pytest.raises(LatentGymError, match="keys"):
        evaluate_chains(ExpertPolicy(), [({"led": 0}, ["open_drawer"])])
    with pytest.raises(LatentGymError, match="task"):
        evaluate_chains(ExpertPolicy(), 1, env_options={"task": "open_drawer"})


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["latentgym", "rollout", "calvin-chains", "--policy", "expert", "--chains", "2", "--json"]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chains"] == 2 and set(found["success_at"]) == set("12345")
    assert set(found["mean_length"]) == {"value", "low", "high"}
    assert all({"successes", "trials", "low", "high"} <= rate.keys() for rate in found["tasks"].values())
