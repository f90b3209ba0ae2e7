"""The Fetch tasks: goals for hindsight, a visible goal, frames that do not touch the simulation, and their experts."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from latentgym.envs.fetch import fetch_ids, make_fetch
from latentgym.envs.make import make_env, make_expert
from latentgym.errors import LatentGymError


@pytest.fixture(scope="module")
def pick_and_place():
    env = make_env("FetchPickAndPlace-v4")
    yield env
    env.close()


def solve(env, seed):
    """Whether the goal was met at some step, and at the end."""
    observation, _ = env.reset(seed=seed)
    expert = make_expert(env)
    expert.reset(env, np.random.default_rng(0))
    ever, truncated = False, False
    while not truncated:
        observation, _, terminated, truncated, info = env.step(expert.act(env, observation))
        ever = ever or info["is_success"]
        assert not terminated
    return ever, info["is_success"]


@pytest.mark.parametrize("task", ["Reach", "PickAndPlace", "Push"])
def test_expert_meets_the_goal_and_stays_there(task):
    env = make_fetch(f"Fetch{task}-v4", pixels=False)
    assert [solve(env, seed) for seed in range(5)] == [(True, True)] * 5


def test_all_tasks_with_both_rewards_are_offered():
    ids = fetch_ids()
    assert len(ids) == 8 and all(gymnasium.spec(env_id) for env_id in ids if make_fetch(env_id, pixels=False))


def test_frames_do_not_change_the_episode(pick_and_place):
    blind = make_fetch("FetchPickAndPlace-v4", pixels=False)
    for env in (pick_and_place, blind):
        env.reset(seed=3)
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = rng.uniform(-1, 1, 4).astype(np.float32)
        seen, blindly = pick_and_place.step(action), blind.step(action)
        assert np.array_equal(seen[0]["state"], blindly[0]["state"]) and seen[1] == blindly[1]


def test_goal_is_observed_shown_and_scored(pick_and_place):
    observation, info = pick_and_place.reset(seed=2)  # whose goal the arm does not hide
    assert np.array_equal(observation["state"][-3:], observation["desired_goal"].astype(np.float32))
    reward = pick_and_place.unwrapped.compute_reward
    assert reward(observation["desired_goal"], observation["desired_goal"], info) == 0
    assert reward(observation["achieved_goal"] + 1, observation["desired_goal"], info) == -1
    before = observation["pixels"].astype(int)
    site = pick_and_place.unwrapped._task.model.site("target0")
    site.rgba[3] = 0.0
    hidden = pick_and_place.render().astype(int)
    site.rgba[3] = 1.0
    assert (np.abs(before - hidden).max(axis=-1) > 20).sum() >= 3


def test_hand_moves_up_in_the_frame_when_it_moves_up(pick_and_place):
    env = pick_and_place.unwrapped
    rows = []
    for direction in (0.0, 1.0):
        env.reset(seed=1)
        for _ in range(4):
            env.step(np.array([0, 0, direction, 0], np.float32))
        finger = [env._task.model.geom(index).bodyid[0] for index in range(env._task.model.ngeom)]
        names = {env._task.model.body(body).name for body in finger}
        assert "robot0:r_gripper_finger_link" in names
        without = env.render().astype(int)
        geoms = [i for i, body in enumerate(finger) if "finger" in env._task.model.body(body).name]
        colours = env._task.model.geom_rgba[geoms].copy()
        env._task.model.geom_rgba[geoms, 3] = 0.0
        changed = np.abs(env.render().astype(int) - without).max(axis=-1) > 10
        env._task.model.geom_rgba[geoms] = colours
        rows.append(np.argwhere(changed)[:, 0].mean())
    assert rows[1] < rows[0] - 1


def test_negative_gripper_action_closes(pick_and_place):
    pick_and_place.reset(seed=1)
    openings = []
    for sign in (1, -1):
        for _ in range(8):
            observation, *_ = pick_and_place.step(np.array([0, 0, 0, sign], np.float32))
        openings.append(observation["proprio"][3] + observation["proprio"][4])
    assert openings[0] > openings[1] + 0.05


def test_simulator_state_holds_the_goal(pick_and_place):
    pick_and_place.reset(seed=5)
    for _ in range(3):
        observation, *_ = pick_and_place.step(np.array([0.5, -0.5, -0.2, 1], np.float32))
    state = pick_and_place.unwrapped.sim_state()
    other = make_fetch("FetchPickAndPlace-v4")
    other.reset(seed=6)
    other.set_sim_state(state)
    assert np.array_equal(other.render(), observation["pixels"])
    other.close()
    with pytest.raises(LatentGymError, match="simulator state"):
        pick_and_place.unwrapped.set_sim_state(state[:-1])


@pytest.mark.parametrize(
    ("env_id", "message"), [("FetchReach-v1", "did you mean"), ("FetchReech-v4", "did you mean 'FetchReach-v4'")]
)
def test_other_versions_and_misspelt_tasks_list_close_names(env_id, message):
    with pytest.raises(LatentGymError, match=message):
        make_env(env_id)
