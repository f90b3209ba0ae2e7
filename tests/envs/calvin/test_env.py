"""The environment's public face: names, shapes, resets and refusals."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from latentgym.envs import make_env
from latentgym.envs.calvin import TASKS, initial_state, official_chains
from latentgym.envs.calvin.actions import ACTION_SPECS
from latentgym.errors import CorruptDataError, LatentGymError, UnknownNameError
from latentgym.trajectories.formats import calvin_layout as layout


@pytest.fixture
def assets(shared: Path) -> Path:
    return shared / "calvin_assets"


@pytest.fixture
def env(assets: Path) -> Iterator[gymnasium.Env]:
    made = make_env("latentgym/CalvinD-v0", assets=assets, pixels=False)
    yield made
    made.close()


@pytest.mark.parametrize("scene", "ABCD")
def test_gymnasium_makes_every_scene(assets: Path, scene: str) -> None:
    env = gymnasium.make(f"latentgym/Calvin{scene}-v0", assets=assets, renderer="tiny", task="turn_on_led")
    observation, info = env.reset(seed=1)
    assert observation["rgb_static"].shape == (200, 200, 3) and observation["rgb_static"].dtype == np.uint8
    assert observation["rgb_gripper"].shape == (84, 84, 3) and observation["rgb_gripper"].dtype == np.uint8
    assert observation["robot_obs"].shape == (15,) and observation["robot_obs"].dtype == np.float64
    assert observation["scene_obs"].shape == (24,) and observation["scene_obs"].dtype == np.float64
    assert observation["instruction"] and info["is_success"] is False
    assert env.observation_space.contains(observation)
    assert env.action_space == gymnasium.spaces.Box(-1, 1, (7,), np.float32)
    env.close()


def test_the_static_frame_is_upright_and_rgb(assets: Path) -> None:
    """A block that is put higher is seen higher, and the red one is red."""
    env = make_env("latentgym/CalvinD-v0", assets=assets, cameras=["static"], renderer="tiny")
    rows, scene = [], initial_state(official_chains(1)[0][0])[1]
    for height in (0.46, 0.60):
        scene[6:9] = 0.25, -0.1, height
        frame = env.reset(seed=0, options={"scene_obs": scene})[0]["rgb_static"].astype(int)
        red = (frame[..., 0] > 2 * frame[..., 1]) & (frame[..., 0] > 2 * frame[..., 2])
        rows.append(np.flatnonzero(red.any(axis=1)).mean())
    assert rows[1] < rows[0] - 10
    env.close()


def test_reset_goes_to_the_state_that_is_asked_for(env: gymnasium.Env) -> None:
    robot, scene = initial_state(official_chains(1)[0][0])
    observation, _ = env.reset(seed=0, options={"robot_obs": robot, "scene_obs": scene, "task": "open_drawer"})
    np.testing.assert_allclose(observation["robot_obs"], robot, atol=5e-3)
    np.testing.assert_allclose(observation["scene_obs"][:6], scene[:6], atol=2e-3)
    assert observation["instruction"] == "pull the handle to open the drawer"
    again, _ = env.reset(options={"robot_obs": observation["robot_obs"].tolist(), "scene_obs": scene})
    assert again["instruction"] == "", "a task given to one reset does not outlive it"


def test_a_used_world_resets_to_the_bit(env: gymnasium.Env) -> None:
    options = {"scene_obs": initial_state(official_chains(3)[2][0])[1]}
    first, _ = env.reset(seed=0, options=options)
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 7)).astype(np.float32):
        env.step(action)
    second, _ = env.reset(seed=5, options=options)
    np.testing.assert_array_equal(first["state"], second["state"])


@pytest.mark.parametrize(
    "options",
    [{"robot": 1}, {"robot_obs": np.zeros(14)}, {"scene_obs": np.full(24, np.nan)}, {"scene_obs": "drawer"},
     {"task": "dance"}, {"task": ["open_drawer"]}, {"scene_obs": np.full(24, 0.5)}],
    ids=["unknown", "short", "NaN", "text", "task", "list of tasks", "half a light"],
)  # fmt: skip
def test_bad_reset_options_are_refused(env: gymnasium.Env, options: dict) -> None:
    with pytest.raises(LatentGymError):
        env.reset(seed=0, options=options)
    env.reset(seed=0)  # and leave it usable


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": 3}, "task: expected the name"),
        ({"cameras": 3}, "cameras: expected a list"),
        ({"renderer": "vulkan"}, "renderer: expected"),
        ({"backend": "calvin"}, "backend: expected"),
        ({"backend": "calvin_env", "image_size": 64}, "renders at its own size"),
        ({"horizon": 0}, "horizon: expected a positive integer"),
    ],
)
def test_bad_options_are_refused(assets: Path, options: dict, message: str) -> None:
    with pytest.raises(LatentGymError, match=message):
        make_env("latentgym/CalvinD-v0", assets=assets, pixels=False, **options)
    with pytest.raises(LatentGymError, match="assets: expected a folder"):
        make_env("latentgym/CalvinD-v0", assets=3, pixels=False)


def test_absolute_actions_reach_the_pose_that_they_name(assets: Path) -> None:
    env = make_env("latentgym/CalvinA-v0", assets=assets, pixels=False, action_mode="absolute")
    observation, _ = env.reset(seed=0)
    goal = np.append(observation["robot_obs"][:6] + np.array([0.03, 0.02, 0.04, 0, 0, 0]), 1)
    for _ in range(30):
        observation, *_ = env.step(goal)
    np.testing.assert_allclose(observation["robot_obs"][:3], goal[:3], atol=5e-3)
    with pytest.raises(LatentGymError, match="units"):
        env.step([5, *goal[1:]])
    env.close()


def test_actions_outside_their_range_or_not_finite_are_named(env: gymnasium.Env) -> None:
    env.reset(seed=0)
    for bad, word in (
        (np.full(7, 1.01), "action space"),
        (np.full(7, -1.2), "action space"),
        (np.full(7, np.inf), "NaN"),
    ):
        with pytest.raises(LatentGymError, match=word):
            env.step(bad)
    env.step(np.ones(7))


def test_success_comes_from_the_oracle_and_never_terminates(assets: Path) -> None:
    env = make_env("latentgym/CalvinC-v0", assets=assets, pixels=False, task="turn_on_led", horizon=80)
    observation, _ = env.reset(seed=2)
    expert = env.unwrapped.make_expert()
    expert.reset(env, np.random.default_rng(0))
    for step in range(80):
        observation, reward, terminated, truncated, info = env.step(expert.act(env, observation))
        assert not terminated and truncated == (step == 79) and reward == float(info["is_success"])
        if info["is_success"]:
            break
    assert info["is_success"] is True and "turn_on_led" in env.unwrapped.solved_tasks()
    env.close()


@pytest.mark.parametrize("task", ["place_in_drawer", "place_in_slider", "stack_block"])
def test_placing_begins_with_a_block_in_the_hand(env: gymnasium.Env, task: str) -> None:
    env.reset(seed=4, options={"task": task})
    now = env.unwrapped.simulator.snapshot()
    held = [name for name, block in now.blocks.items() if block.touched == {now.robot}]
    assert len(held) == 1 and now.robot_touches == {now.blocks[held[0]].uid}


def test_an_expert_leaves_what_it_has_done(assets: Path) -> None:
    """It does not press the button again, which would turn the light off."""
    env = make_env("latentgym/CalvinD-v0", assets=assets, pixels=False, task="turn_on_led", horizon=90)
    observation, _ = env.reset(seed=3)
    expert = env.unwrapped.make_expert()
    expert.reset(env, np.random.default_rng(0))
    solved = []
    for _ in range(90):
        observation, *_, info = env.step(expert.act(env, observation))
        solved.append(info["is_success"])
    assert solved == sorted(solved) and solved[-1]
    env.close()


def test_several_tasks_are_drawn_from_the_seed(assets: Path) -> None:
    tasks = ["turn_on_led", "open_drawer", "move_slider_left"]
    env = make_env("latentgym/CalvinA-v0", assets=assets, pixels=False, task=tasks, horizon=4)
    seeds = (0, 1, 11, 0, 1, 11)
    drawn = [(env.reset(seed=seed)[0]["instruction"], env.unwrapped.task) for seed in seeds]
    assert drawn[:3] == drawn[3:] and {task for _, task in drawn} == set(tasks)
    assert len({sentence for sentence, _ in drawn}) == 3 and env.unwrapped.contract.settings["task"] == tasks
    env.reset(seed=0, options={"task": "turn_off_led"})
    assert env.unwrapped.task == "turn_off_led"
    env.close()
    with pytest.raises(UnknownNameError):
        make_env("latentgym/CalvinA-v0", assets=assets, pixels=False, task=["turn_on_led", "dance"])
    with pytest.raises(LatentGymError, match="none"):
        make_env("latentgym/CalvinA-v0", assets=assets, pixels=False, task=[])


def test_actions_mean_what_the_published_data_say() -> None:
    """So that a policy trained on either action space of the data fits the environment of that mode."""
    assert ACTION_SPECS == {"relative": layout.RELATIVE_ACTIONS, "absolute": layout.ABSOLUTE_ACTIONS}


def test_wrong_scene_letters_are_refused(assets: Path) -> None:
    with pytest.raises(LatentGymError):
        make_env("latentgym/CalvinE-v0", assets=assets)
    from latentgym.envs.calvin.env import CalvinEnv

    for letter in ("E", "d", "", "AB"):
        with pytest.raises(UnknownNameError, match="CALVIN scene"):
            CalvinEnv(letter, assets=assets, pixels=False)


def test_half_a_download_is_named_in_one_message(assets: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(assets, tmp_path / "assets")
    victim = next((copy / "data").rglob("*.urdf"))
    victim.write_bytes(victim.read_bytes()[:-10])
    next((copy / "conf" / "scene").glob("calvin_scene_B.yaml")).unlink()
    with pytest.raises(CorruptDataError, match="latentgym assets calvin") as found:
        make_env("latentgym/CalvinD-v0", assets=copy, pixels=False)
    assert victim.name in str(found.value) and "calvin_scene_B.yaml is missing" in str(found.value)


def test_instructions_cover_every_task(env: gymnasium.Env) -> None:
    sentences = {
        env.reset(seed=0, options={"task": task, "scene_obs": np.zeros(24)})[0]["instruction"] for task in TASKS
    }
    assert len(sentences) == 34 and "" not in sentences
