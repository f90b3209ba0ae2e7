from __future__ import annotations

import dataclasses
import pickle
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RescaleAction

from latentgym.corruptions import corrupt
from latentgym.envs import make_env
from latentgym.envs.contract import contract_of
from latentgym.envs.wrappers import (
    ActionSpecWrapper,
    CorruptObservation,
    LatentObservation,
    RecordTrajectories,
    SuccessInfo,
)
from latentgym.envs.wrappers.goal_observation import GoalObservation
from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.trajectories import open_dataset

REACH = "latentgym/TabletopReach-v0"
SHORT = {"horizon": 4, "image_size": 32}
ACTION = np.ones(3, np.float32)


def frames(env: gymnasium.Env[Any, Any], seed: int | None, steps: int = 3) -> np.ndarray:
    return np.stack([env.reset(seed=seed)[0]["pixels"], *(env.step(ACTION)[0]["pixels"] for _ in range(steps))])


@pytest.mark.parametrize("mode", ["static", "per_frame"])
def test_equal_seeds_corrupt_equally_and_others_do_not(mode: Any) -> None:
    env = CorruptObservation(make_env(REACH, **SHORT), "gaussian_noise", 3, mode=mode)
    first = frames(env, 0)
    np.testing.assert_array_equal(frames(env, 0), first)
    clean = frames(make_env(REACH, **SHORT), 0).astype(int)
    noise, other = first - clean, frames(env, 1) - frames(make_env(REACH, **SHORT), 1).astype(int)
    assert not np.array_equal(noise[0], other[0])
    assert np.abs(noise).mean() > 5
    # Noise at a pixel that changes little and is far from black and white.
    still = (np.ptp(clean, axis=0) <= 2) & (clean[0] > 60) & (clean[0] < 140)
    assert still.sum() > 50
    assert (np.corrcoef(noise[0][still], noise[2][still])[0, 1] > 0.9) == (mode == "static")


def test_a_static_corruption_is_that_of_the_whole_clip() -> None:
    env = CorruptObservation(make_env(REACH, **SHORT), "brightness:2")
    expected = corrupt(frames(make_env(REACH, **SHORT), 0)[None], "brightness", 2)[0]
    np.testing.assert_array_equal(frames(env, 0), expected)


def test_only_frames_change_and_the_contract_says_so() -> None:
    clean, env = make_env(REACH, **SHORT), make_env(REACH, corruption="snow:2", **SHORT)
    (before, _), (after, _) = clean.reset(seed=0), env.reset(seed=0)
    np.testing.assert_array_equal(before["state"], after["state"])
    assert not np.array_equal(before["pixels"], after["pixels"])
    assert contract_of(env).settings["corruption"] == "snow:2"


def test_episodes_without_a_seed_differ_from_each_other() -> None:
    env = CorruptObservation(make_env(REACH, **SHORT), "impulse_noise")
    env.reset(seed=0)
    one = frames(env, None)
    env.reset(seed=0)
    np.testing.assert_array_equal(frames(env, None), one)
    assert not np.array_equal(frames(env, None)[0], one[0])


@pytest.mark.parametrize(("name", "severity"), [("snow", 6), ("snow:0", None), ("snow:x", None), ("snow:2", 3)])
def test_severities_that_do_not_exist_are_refused(name: str, severity: int | None) -> None:
    with pytest.raises(LatentGymError, match=r"severit|SEVERITY"):
        CorruptObservation(make_env(REACH, **SHORT), name, severity)


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'snow'"):
        CorruptObservation(make_env(REACH, **SHORT), "snwo")
    with pytest.raises(LatentGymError, match="pixels=True"):
        CorruptObservation(make_env(REACH, pixels=False), "snow")


def test_every_wrapper_is_rebuilt_from_the_spec(tmp_path: Path) -> None:
    env = make_env(REACH, **SHORT)
    spec = contract_of(env).action_spec
    env = SuccessInfo(CorruptObservation(ActionSpecWrapper(env, spec), "snow", 1), keys=["is_success"])
    env = RecordTrajectories(env, tmp_path / "data", policy="mine")
    text = env.spec.to_json()  # type: ignore[union-attr]
    again = gymnasium.make(EnvSpec.from_json(text))
    assert again.spec.to_json() == text  # type: ignore[union-attr]
    np.testing.assert_array_equal(frames(again, 0, 4), frames(pickle.loads(pickle.dumps(env)), 0, 4))
    dataset = open_dataset(tmp_path / "data")
    assert dataset.policies[0] == "mine"
    assert dataset.settings["corruption"] == "snow:1"


def test_an_environment_outside_gymnasiums_registry_has_a_spec_too() -> None:
    env = make_env("Reacher-v5", pixels=False)
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))  # type: ignore[union-attr]
    np.testing.assert_array_equal(again.reset(seed=1)[0]["state"], env.reset(seed=1)[0]["state"])


def test_actions_are_recorded_in_the_range_that_the_contract_states(tmp_path: Path) -> None:
    outside = RescaleAction(make_env(REACH, **SHORT), -5, 5)
    with pytest.raises(LatentGymError, match="record inside RescaleAction"):
        RecordTrajectories(outside, tmp_path / "outside")
    inside = RescaleAction(RecordTrajectories(make_env(REACH, **SHORT), tmp_path / "inside"), -5, 5)
    inside.reset(seed=0)
    for _ in range(4):
        inside.step(2.5 * ACTION)
    np.testing.assert_allclose(open_dataset(tmp_path / "inside").episode(0).action, 0.5)


def test_latents_are_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(LatentGymError, match="record inside LatentObservation"):
        RecordTrajectories(LatentObservation(make_env(REACH, **SHORT), "pixels"), tmp_path / "out")


def test_a_second_recorder_of_one_folder_is_told(tmp_path: Path) -> None:
    first, second = (RecordTrajectories(make_env(REACH, **SHORT), tmp_path / "out") for _ in range(2))
    for env in (first, second):
        env.reset(seed=0)
    for _ in range(4):
        first.step(ACTION)
    for _ in range(3):
        second.step(ACTION)
    with pytest.raises(LatentGymError, match="a folder of its own"):
        second.step(ACTION)


def test_a_goal_is_a_new_array_every_step() -> None:
    check_env(GoalObservation(make_env(REACH, **SHORT)), skip_render_check=True)


def test_bounds_are_compared_as_the_space_holds_them() -> None:
    env = make_env("Humanoid-v5", pixels=False)
    spec = contract_of(env).action_spec
    tidy = dataclasses.replace(spec, low=(-0.4,) * spec.size, high=(0.4,) * spec.size)
    assert contract_of(ActionSpecWrapper(env, tidy)).action_spec.low[0] == -0.4


class Infos(gymnasium.Env[Any, Any]):
    """Says in its info what it is told."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, *infos: dict[str, Any]) -> None:
        self.infos = infos

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        info = dict(self.infos[self.time - 1])
        return np.zeros(1, np.float32), 0.0, False, self.time == len(self.infos), info


@pytest.mark.parametrize(
    ("info", "success"),
    [
        ({"success": 1.0}, True),
        ({"is_success": False, "success": True}, False),
        ({"tasks_to_complete": []}, True),
        ({"tasks_to_complete": ["microwave"]}, False),
        ({"success": False, "tasks_to_complete": []}, False),
    ],
)
def test_success_is_read_from_what_the_info_states(info: dict[str, Any], success: bool) -> None:
    env = SuccessInfo(Infos(info))
    assert env.reset()[1] == {"is_success": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert env.step(np.zeros(1))[4]["is_success"] is success


def test_an_environment_that_states_no_success_is_said_once() -> None:
    with pytest.warns(UserWarning, match="states no success") as said:
        for _ in range(2):
            env = SuccessInfo(Infos({"distance": 1.0}, {"distance": 0.0}), keys=["solved"])
            env.reset()
            for _ in range(2):
                assert env.step(np.zeros(1))[4]["is_success"] is False
    assert len(said) == 1 and "solved" in str(said[0].message)


def test_success_that_is_stated_at_the_end_alone_is_success() -> None:
    env = SuccessInfo(Infos({"distance": 1.0}, {"success": True}))
    env.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [env.step(np.zeros(1))[4]["is_success"] for _ in range(2)] == [False, True]
