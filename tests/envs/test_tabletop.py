"""The tabletop family: determinism, the contract, and the proof that every task is worth measuring on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from latentgym.envs.behaviours import make_behaviour
from latentgym.envs.make import TABLETOP_IDS, make_env, make_expert
from latentgym.envs.recording import run_episode
from latentgym.envs.tabletop.env import TabletopEnv
from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.trajectories.episode import Episode

IDS = tuple(TABLETOP_IDS)
TASKS = tuple(TABLETOP_IDS.values())
Features = Callable[[NDArray[np.float32]], NDArray[np.float32]]
ROLLOUT_SEEDS = range(3000, 3060)
DEMONSTRATIONS = 60


def assert_equal(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        np.testing.assert_array_equal(value, right[key], err_msg=key)


def success_rate(env: gymnasium.Env[Any, Any], act: Callable[[list[dict[str, Any]]], Any], seeds: range) -> float:
    """Share of episodes with a success at any step; ``act`` sees all observations so far."""
    wins = 0
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        history, truncated, won = [observation], False, False
        while not (truncated or won):
            observation, _, _, truncated, info = env.step(act(history))
            history.append(observation)
            won = info["is_success"]
        wins += won
    return wins / len(seeds)


def clone(inputs: NDArray[np.float32], actions: NDArray[np.float32]) -> Features:
    """An MLP (256, 256, 256), Adam 1e-3, batch 256, 1500 steps, as a function of one input row."""
    generator = torch.Generator().manual_seed(0)
    mean, scale = inputs.mean(0), inputs.std(0) + 1e-6
    x, y = torch.from_numpy((inputs - mean) / scale), torch.from_numpy(actions)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[torch.nn.Module] = []
        for wide in (256, 256, 256):
            layers += [torch.nn.Linear(layers[-2].out_features if layers else x.shape[1], wide), torch.nn.ReLU()]  # type: ignore[arg-type]
        network = torch.nn.Sequential(*layers, torch.nn.Linear(256, y.shape[1]))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(1500):
        rows = torch.randint(len(x), (256,), generator=generator)
        loss = ((network(x[rows]) - y[rows]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def predict(row: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            action: NDArray[np.float32] = network(torch.from_numpy((row - mean) / scale)).numpy()
        return action

    return predict


def demonstrations(env: gymnasium.Env[Any, Any]) -> list[Episode]:
    behaviour = make_behaviour("noisy-expert", env)
    return [run_episode(env, behaviour, root_seed=0, index=index) for index in range(DEMONSTRATIONS)]


def labels(episodes: list[Episode]) -> NDArray[np.float32]:
    return np.concatenate([episode.expert_action for episode in episodes if episode.expert_action is not None])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("distractor", ["none", "moving"])
def test_gymnasium_accepts_it(task: str, distractor: Any) -> None:
    env = TabletopEnv(task, distractor=distractor, render_mode="rgb_array", horizon=10)
    check_env(env, skip_close_check=True)
    env.close()


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("distractor", ["none", "static", "moving"])
def test_a_seed_determines_the_episode_bitwise(env_id: str, distractor: str) -> None:
    left, right = (make_env(env_id, distractor=distractor) for _ in range(2))
    rng = np.random.default_rng(1)
    right.reset(seed=99)
    for _ in range(5):  # a used environment is as good as a fresh one
        right.step(rng.uniform(-1, 1, 3).astype(np.float32))
    pair = [env.reset(seed=7) for env in (left, right)]
    assert_equal(pair[0][0], pair[1][0])
    for _ in range(12):
        action = rng.uniform(-1, 1, 3).astype(np.float32)
        steps = [env.step(action) for env in (left, right)]
        assert_equal(steps[0][0], steps[1][0])
        assert steps[0][1:] == steps[1][1:]
    left.close()
    right.close()


@pytest.mark.parametrize("env_id", IDS)
def test_other_seeds_and_distractors_change_what_they_should(env_id: str) -> None:
    plain, static = make_env(env_id), make_env(env_id, distractor="static")
    first, other, distracted = plain.reset(seed=1)[0], plain.reset(seed=2)[0], static.reset(seed=1)[0]
    assert not np.array_equal(first["state"], other["state"])
    np.testing.assert_array_equal(first["state"], distracted["state"])
    assert not np.array_equal(first["pixels"], distracted["pixels"])


def test_only_a_moving_distractor_moves() -> None:
    still = np.zeros(3, np.float32)
    for distractor, moves in (("static", False), ("moving", True)):
        env = make_env("latentgym/TabletopReach-v0", distractor=distractor)
        env.reset(seed=4)
        env.step(still)
        before = env.step(still)[0]
        after = env.step(still)[0]
        np.testing.assert_allclose(before["state"], after["state"], atol=1e-5)
        assert np.array_equal(before["pixels"], after["pixels"]) is not moves


@pytest.mark.parametrize("env_id", IDS)
def test_a_simulator_state_renders_and_continues_bitwise(env_id: str) -> None:
    env, other = make_env(env_id, distractor="moving"), make_env(env_id, distractor="moving")
    expert = make_expert(env)
    observation, _ = env.reset(seed=3)
    other.reset(seed=4)
    for step in range(12):
        state = env.get_wrapper_attr("sim_state")()
        assert_equal(observation, other.get_wrapper_attr("set_sim_state")(state))
        action = expert.act(env, observation)
        observation, reward, *_ = env.step(action)
        continued, same_reward, *_ = other.step(action)
        assert_equal(observation, continued)
        assert reward == same_reward, step


@pytest.mark.parametrize("env_id", IDS)
def test_truncates_at_the_horizon_and_never_terminates(env_id: str) -> None:
    env = make_env(env_id, pixels=False, horizon=6)
    assert "pixels" not in env.reset(seed=0)[0]
    flags = [env.step(np.zeros(3, np.float32))[2:4] for _ in range(6)]
    assert flags == [(False, False)] * 5 + [(False, True)]
    with pytest.raises(LatentGymError, match="reset first"):
        env.step(np.zeros(3, np.float32))


def test_a_full_action_moves_the_gripper_by_about_five_pixels() -> None:
    env = make_env("latentgym/TabletopReach-v0")
    columns = []
    observation, _ = env.reset(seed=0)
    for _ in range(4):
        red, blue = observation["pixels"][..., 0].astype(int), observation["pixels"][..., 2].astype(int)
        columns.append(np.nonzero(blue - red > 60)[1].mean())
        observation, *_ = env.step(np.array([1, 0, 0], np.float32))
    assert 3.5 < np.diff(columns)[1:].mean() < 7


def test_frames_are_upright() -> None:
    """The far gripper of Push starts above the near pad."""
    frame = make_env("latentgym/TabletopPush-v0").reset(seed=0)[0]["pixels"].astype(int)
    gripper_row = np.nonzero(frame[..., 2] - frame[..., 0] > 60)[0].mean()
    pad_row = np.nonzero(frame[..., 1] - frame[..., 0] > 60)[0].mean()
    assert gripper_row + 10 < pad_row


def test_stock_look_differs() -> None:
    fast, stock = (make_env(IDS[1], render=look).reset(seed=0)[0]["pixels"] for look in ("fast", "stock"))
    assert fast.shape == stock.shape
    assert not np.array_equal(fast, stock)


@pytest.mark.parametrize("action", [[np.nan, 0, 0], [np.inf, 0, 0], [0, 0], [[0, 0, 0]]])
def test_bad_actions_are_refused(action: Any) -> None:
    env = make_env(IDS[0], pixels=False)
    env.reset(seed=0)
    with pytest.raises(LatentGymError, match="action"):
        env.step(np.array(action, np.float32))


def test_bad_options_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="moving"):
        make_env(IDS[0], distractor="movin")
    for options in ({"image_size": 0}, {"horizon": -1}, {"render": "nice"}):
        with pytest.raises(LatentGymError, match=next(iter(options))):
            make_env(IDS[0], **options)
    plain, distracted = make_env(IDS[0], pixels=False), make_env(IDS[0], pixels=False, distractor="static")
    with pytest.raises(LatentGymError, match="simulator state"):
        plain.get_wrapper_attr("set_sim_state")(distracted.get_wrapper_attr("sim_state")())


@pytest.mark.parametrize("env_id", IDS)
def test_the_expert_succeeds_and_blind_actions_do_not(env_id: str) -> None:
    env = make_env(env_id, pixels=False)
    expert, rng = make_expert(env), np.random.default_rng(0)
    assert success_rate(env, lambda history: expert.act(env, history[-1]), ROLLOUT_SEEDS) >= 0.95
    assert success_rate(env, lambda history: rng.uniform(-1, 1, 3), ROLLOUT_SEEDS) < 0.1
    assert success_rate(env, lambda history: np.zeros(3), ROLLOUT_SEEDS) < 0.1
    # The strongest blind floor, so on more seeds.
    mean = labels(demonstrations(env)).mean(axis=0)
    assert success_rate(env, lambda history: mean, range(3000, 3200)) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("env_id", IDS)
def test_the_state_can_be_cloned_and_proprioception_cannot(env_id: str) -> None:
    env = make_env(env_id, pixels=False)
    episodes = demonstrations(env)
    rates = {}
    for key in ("state", "proprio"):
        policy = clone(np.concatenate([getattr(episode, key)[:-1] for episode in episodes]), labels(episodes))
        rates[key] = success_rate(env, lambda history, key=key, policy=policy: policy(history[-1][key]), ROLLOUT_SEEDS)
    assert rates["state"] >= 0.9, rates
    assert rates["proprio"] <= 0.4, rates


@pytest.mark.slow
def test_intercept_needs_two_frames() -> None:
    """Positions alone fail; positions and their change since the frame before, all that two frames hold, suffice."""
    env = make_env("latentgym/TabletopIntercept-v0", pixels=False)
    names = env.get_wrapper_attr("contract").settings["state_names"]
    where = [names.index(name) for name in ("gripper_x", "gripper_y", "gripper_z", "puck_x", "puck_y")]
    episodes = demonstrations(env)
    now = np.concatenate([episode.state[:-1, where] for episode in episodes])
    before = np.concatenate(
        [np.concatenate([episode.state[:1, where], episode.state[:-2, where]]) for episode in episodes]
    )
    one, two = clone(now, labels(episodes)), clone(np.concatenate([now, now - before], axis=1), labels(episodes))

    def look_once(history: list[dict[str, Any]]) -> NDArray[np.float32]:
        return one(history[-1]["state"][where])

    def look_twice(history: list[dict[str, Any]]) -> NDArray[np.float32]:
        last, previous = (history[max(index, 0)]["state"][where] for index in (len(history) - 1, len(history) - 2))
        return two(np.concatenate([last, last - previous]))

    seeds = range(3000, 3180)  # the gap of 60 episodes varies by a tenth
    single, pair = success_rate(env, look_once, seeds), success_rate(env, look_twice, seeds)
    assert pair >= 0.85, (single, pair)
    assert single <= pair - 0.4, (single, pair)
