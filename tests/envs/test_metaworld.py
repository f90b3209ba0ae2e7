"""The Meta-World adapter: determinism, a visible goal, upright frames, and experts that solve the shipped tasks."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest

from latentgym.envs.contract import contract_of
from latentgym.envs.metaworld import MetaWorldEnv, make_metaworld, metaworld_tasks
from latentgym.errors import LatentGymError

SHIPPED = ("reach-v3", "button-press-v3", "drawer-open-v3")


@pytest.fixture(scope="module")
def reach():
    env = make_metaworld("metaworld/reach-v3")
    yield env
    env.close()


def solve(env: MetaWorldEnv, seed: int) -> int | None:
    """Steps that the expert needs, or None if it fails."""
    observation, _ = env.reset(seed=seed)
    expert = env.make_expert()
    expert.reset(env, np.random.default_rng(0))
    for step in range(1, contract_of(env).horizon + 1):
        observation, _, terminated, truncated, info = env.step(expert.act(env, observation))
        assert not terminated
        if info["is_success"]:
            return step
    assert truncated
    return None


def final_state_of_an_episode(seed: int) -> tuple[bytes, bytes]:
    env = make_metaworld("metaworld/reach-v3")
    env.reset(seed=seed)
    for _ in range(3):
        observation, *_ = env.step(np.array([0.5, -0.5, 0.2, 1.0], np.float32))
    env.close()
    return observation["pixels"].tobytes(), observation["state"].tobytes()


@pytest.mark.parametrize("task", SHIPPED)
def test_expert_solves_task_well_before_the_horizon(task):
    env = make_metaworld(f"metaworld/{task}", pixels=False)
    times = [solve(env, seed) for seed in range(5)]
    assert all(time is not None and time <= 0.7 * env.contract.horizon for time in times), times


def test_all_fifty_tasks_are_offered():
    assert len(metaworld_tasks()) == 50


@pytest.mark.slow
@pytest.mark.parametrize("task", metaworld_tasks())
def test_used_and_fresh_environments_agree(task):
    used, fresh = (make_metaworld(f"metaworld/{task}", pixels=False) for _ in range(2))
    used.reset(seed=1)
    for _ in range(10):
        used.step(used.action_space.sample())
    for env in (used, fresh):
        env.reset(seed=2)
    action = np.array([0.3, 0.3, -0.3, 1.0], np.float32)
    for _ in range(5):
        assert np.array_equal(used.step(action)[0]["state"], fresh.step(action)[0]["state"])
    assert np.array_equal(used.sim_state(), fresh.sim_state())


def test_a_spawned_process_renders_the_same_bits():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        theirs = pool.apply(final_state_of_an_episode, (3,))
    assert theirs == final_state_of_an_episode(3)


def test_state_holds_the_goal(reach):
    goals = []
    for seed in (1, 2):
        observation, _ = reach.reset(seed=seed)
        goals.append(observation["state"][-3:])
    assert np.all(np.abs(goals[0]) > 0)
    assert not np.array_equal(goals[0], goals[1])


def test_goal_is_visible_in_the_frame(reach):
    observation, _ = reach.reset(seed=1)
    before = observation["pixels"].astype(int)
    goal_site = reach._task.model.site("goal")
    goal_site.rgba[3] = 0.0
    hidden = reach.render().astype(int)
    goal_site.rgba[3] = 1.0
    assert (np.abs(before - hidden).max(axis=-1) > 20).sum() >= 3


def test_hand_moves_up_in_the_frame_when_it_moves_up():
    """Upright: an upward action lowers the mean row of the pixels that the fingers cover."""
    for render in ("fast", "stock"):
        env = make_metaworld("metaworld/reach-v3", render=render, image_size=96)
        env.reset(seed=1)
        rows = []
        for direction in (-1.0, 1.0):
            for _ in range(6):
                observation, *_ = env.step(np.array([0, 0, direction, 0], np.float32))
            frame = observation["pixels"].astype(int)
            finger = (frame[..., 1] - frame[..., 0] > 60) & (frame[..., 2] - frame[..., 0] > 60)  # the cyan one
            assert finger.any()
            rows.append(np.argwhere(finger)[:, 0].mean())
        env.close()
        assert rows[1] < rows[0] - 1, (render, rows)


def test_one_step_moves_the_hand_by_some_pixels_worth(reach):
    observation, _ = reach.reset(seed=1)
    start = observation["proprio"][:3]
    for _ in range(4):
        observation, *_ = reach.step(np.array([1, 0, 0, 0], np.float32))
    moved = observation["proprio"][:3] - start
    assert 0.05 < moved[0] <= 4 * reach.contract.action_spec.scale[0] + 1e-3
    assert np.abs(moved[1:]).max() < 0.02


def test_closing_action_closes_the_gripper(reach):
    reach.reset(seed=1)
    for sign in (1.0, -1.0):
        for _ in range(5):
            observation, *_ = reach.step(np.array([0, 0, 0, sign], np.float32))
        if sign > 0:
            closed = observation["proprio"][3]
    assert closed < observation["proprio"][3]


def test_simulator_state_renders_the_same_frame_in_another_environment(reach):
    observation, _ = reach.reset(seed=4)
    for _ in range(5):
        observation, *_ = reach.step(np.array([0.2, 1, -0.4, 0], np.float32))
    state = reach.sim_state()
    other = make_metaworld("metaworld/reach-v3", pixels=False)
    other.reset(seed=5)
    other.set_sim_state(state)
    assert np.array_equal(other.render(), observation["pixels"])
    other.close()


def test_horizon_truncates_and_then_asks_for_reset():
    env = make_metaworld("metaworld/reach-v3", pixels=False, horizon=2)
    env.reset(seed=0)
    assert [env.step(np.zeros(4))[3] for _ in range(2)] == [False, True]
    with pytest.raises(LatentGymError, match="call reset"):
        env.step(np.zeros(4))


def test_further_cameras_are_observed_under_their_names():
    env = make_metaworld("metaworld/reach-v3", cameras=("gripperPOV",))
    observation, _ = env.reset(seed=0)
    env.close()
    assert env.contract.cameras == ("pixels", "pixels_gripperPOV")
    assert observation["pixels_gripperPOV"].shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("metaworld/raech-v3", {}, "did you mean 'reach-v3'"),
        ("metaworld/reach-v3", {"action_repeats": 2}, "did you mean 'action_repeat'"),
        ("metaworld/reach-v3", {"action_repeat": 0}, "positive integer"),
        ("metaworld/reach-v3", {"horizon": 400}, "from 1 to 166"),
        ("metaworld/reach-v3", {"image_size": 2}, "image_size"),
        ("metaworld/reach-v3", {"render": "nice"}, "render"),
        ("metaworld/reach-v3", {"cameras": ("corner9",)}, "unknown camera"),
    ],
)
def test_bad_input_gets_one_clear_error(env_id, options, message):
    with pytest.raises(LatentGymError, match=message):
        make_metaworld(env_id, **options)


@pytest.mark.parametrize("action", [np.full(4, np.nan), np.zeros(3)])
def test_bad_action_is_refused(reach, action):
    reach.reset(seed=0)
    with pytest.raises(LatentGymError, match="action"):
        reach.step(action)
