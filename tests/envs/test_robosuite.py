"""The robosuite adapter: seed, truncation, success and orientation, which its own wrapper gets wrong."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from latentgym.envs.contract import contract_of
from latentgym.envs.robosuite import make_robosuite
from latentgym.envs.robosuite_experts import ROBOSUITE_EXPERTS
from latentgym.errors import LatentGymError


@pytest.fixture(scope="module")
def lift():
    env = make_robosuite("robosuite/Lift-v0")
    yield env
    env.close()


def play(env, seed, steps=4):
    observation, _ = env.reset(seed=seed)
    observations = [observation]
    for step in range(steps):
        observations.append(env.step(np.full(env.action_space.shape, 0.3 - 0.2 * step, np.float32))[0])
    return observations


def test_expert_lifts_the_cube(lift):
    env = make_robosuite("robosuite/Lift-v0", pixels=False)
    solved = 0
    for seed in range(5):
        observation, info = env.reset(seed=seed)
        assert info == {"is_success": False}
        expert = env.make_expert()
        expert.reset(env, np.random.default_rng(0))
        truncated = False
        while not truncated and not info["is_success"]:
            observation, _, terminated, truncated, info = env.step(expert.act(env, observation))
            assert not terminated
        solved += info["is_success"]
    assert solved == 5


def test_reset_seed_determines_the_episode_also_in_a_used_environment(lift):
    first, again = play(lift, 7), play(lift, 7)
    other = play(lift, 8)
    for ours, theirs in zip(first, again, strict=True):
        for name in ours:
            assert np.array_equal(ours[name], theirs[name]), name
    assert not np.array_equal(first[0]["state"], other[0]["state"])


def test_hand_moves_up_in_the_frame_when_it_moves_up(lift):
    """Upright: the cube lies below the hand, so its rows are below those that change when the hand moves."""
    before, _ = lift.reset(seed=7)
    for _ in range(5):
        after, *_ = lift.step(np.array([0, 0, 1, 0, 0, 0, 0], np.float32))
    frame = before["pixels"].astype(int)
    cube = np.argwhere((frame[..., 0] - frame[..., 1] > 60) & (frame[..., 0] - frame[..., 2] > 60))
    changed = np.argwhere(np.abs(frame - after["pixels"]).max(axis=-1) > 40)
    assert len(cube) >= 10
    assert changed[:, 0].mean() < cube[:, 0].mean() - 5


@pytest.mark.parametrize(("dimension", "sign"), [(0, 1), (1, -1), (2, 1)])
def test_translations_follow_the_world_axes(lift, dimension, sign):
    action = np.zeros(7, np.float32)
    action[dimension] = sign
    start = lift.reset(seed=3)[0]["proprio"][:3]
    for _ in range(5):
        observation, *_ = lift.step(action)
    moved = observation["proprio"][:3] - start
    assert moved[dimension] * sign > 0.02
    assert np.abs(np.delete(moved, dimension)).max() < 0.02


def test_positive_gripper_action_closes(lift):
    lift.reset(seed=3)
    openings = []
    for sign in (-1, 1):
        for _ in range(10):
            observation, *_ = lift.step(np.array([0, 0, 0, 0, 0, 0, sign], np.float32))
        openings.append(observation["proprio"][9] - observation["proprio"][10])
    assert openings[0] > openings[1] + 0.03


def test_horizon_is_truncation():
    env = make_robosuite("robosuite/Lift-v0", pixels=False, horizon=2)
    env.reset(seed=0)
    ends = [env.step(np.zeros(7))[2:4] for _ in range(2)]
    assert ends == [(False, False), (False, True)]


def test_simulator_state_renders_the_same_frame(lift):
    observation = play(lift, 11)[-1]
    state = lift.sim_state()
    lift.reset(seed=12)
    lift.set_sim_state(state)
    assert np.array_equal(lift.render(), observation["pixels"])
    with pytest.raises(LatentGymError, match="simulator state"):
        lift.set_sim_state(state[:-1])


def test_robosuite_is_silent(capfd, caplog):
    with caplog.at_level(logging.INFO):
        make_robosuite("robosuite/Stack-v0", pixels=False)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert not [record for record in caplog.records if record.name == "robosuite_logs"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["Door", "Wipe"])
def test_simulator_state_holds_what_a_reset_placed(task):
    env = make_robosuite(f"robosuite/{task}-v0")
    play(env, 1)
    state, frame = env.sim_state(), env.render()
    env.reset(seed=2)
    assert not np.array_equal(env.render(), frame)
    env.set_sim_state(state)
    assert np.array_equal(env.render(), frame) and np.array_equal(env.sim_state(), state)
    env.close()


@pytest.mark.slow
def test_poses_relative_to_the_gripper_are_of_the_same_moment():
    env = make_robosuite("robosuite/NutAssemblySquare-v0", pixels=False)
    for observation in play(env, 3):
        state = observation["state"]
        rotation = np.stack([state[3:6], state[6:9], np.cross(state[3:6], state[6:9])], axis=1)
        # robosuite measures in the axes of the hand's body, a quarter turn off those of the gripper's site.
        body = np.stack([rotation[:, 1], -rotation[:, 0], rotation[:, 2]], axis=1)
        assert np.allclose(body.T @ (state[18:21] - state[:3]), state[11:14], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["NutAssemblySingle", "PickPlaceSingle"])
def test_drawn_object_does_not_depend_on_the_hash_seed(task):
    code = f"""
from latentgym.envs.robosuite import make_robosuite
from latentgym.envs.robosuite_experts import ROBOSUITE_EXPERTS
env = make_robosuite("robosuite/{task}-v0", pixels=False)
print([float(env.reset(seed=seed)[0]["state"].sum()) for seed in range(4)])
"""
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] and len(runs[0]) > 20


@pytest.mark.slow
@pytest.mark.parametrize("task", ["TwoArmLift", "TwoArmHandover"])
def test_two_arms_move_along_the_world_axes(task):
    env = make_robosuite(f"robosuite/{task}-v0", pixels=False)
    spec = contract_of(env).action_spec
    for arm in range(2):
        for dimension in range(3):
            action = np.zeros(spec.size, np.float32)
            action[spec.names.index(f"robot{arm}_{'xyz'[dimension]}")] = 1.0
            start = env.reset(seed=3)[0]["proprio"][11 * arm : 11 * arm + 3]
            for _ in range(5):
                observation, *_ = env.step(action)
            moved = observation["proprio"][11 * arm : 11 * arm + 3] - start
            assert moved[dimension] > 0.02 and np.abs(np.delete(moved, dimension)).max() < 0.02, (arm, dimension, moved)


def solve(env, seed):
    """Whether the expert succeeds at some step."""
    observation, info = env.reset(seed=seed)
    expert = env.make_expert()
    expert.reset(env, np.random.default_rng(0))
    truncated = False
    while not truncated and not info["is_success"]:
        observation, _, _, truncated, info = env.step(expert.act(env, observation))
    return bool(info["is_success"])


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(set(ROBOSUITE_EXPERTS) - {"Lift"}))
def test_expert_solves_most_episodes(task):
    env = make_robosuite(f"robosuite/{task}-v0", pixels=False)
    assert sum(solve(env, seed) for seed in range(5)) >= 4


@pytest.mark.parametrize(
    ("env_id", "message"), [("robosuite/Lfit-v0", "did you mean 'robosuite/Lift-v0'"), ("robosuite/Lift", "Lift-v0")]
)
def test_unknown_task_lists_close_names(env_id, message):
    with pytest.raises(LatentGymError, match=message):
        make_robosuite(env_id)


def test_task_without_expert_says_so():
    with pytest.raises(LatentGymError, match="no expert"):
        make_robosuite("robosuite/ToolHang-v0", pixels=False).make_expert()
