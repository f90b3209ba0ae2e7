"""The adapter for any Gymnasium id, and the wrappers that it is built from."""

from __future__ import annotations

import dataclasses

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from latentgym.envs.contract import EnvContract, contract_of
from latentgym.envs.generic import make_generic, square_frame
from latentgym.envs.wrappers.action_spec import ActionSpecWrapper, action_spec_of, checked_action
from latentgym.envs.wrappers.success import SuccessInfo
from latentgym.errors import LatentGymError


class Corridor(gymnasium.Env):
    """A point on a line that succeeds beyond 1 and terminates below 0; frames are 40 by 60, left half red."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012
    observation_space = spaces.Box(-5, 5, (1,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float64)

    def __init__(self, render_mode=None, key="success", broken=False):
        self.render_mode = render_mode
        self.key = key
        self.broken = broken

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(0, 0.5)
        return np.array([self.position]), {}

    def step(self, action):
        self.position += float(action[0])
        return np.array([self.position]), 0.0, self.position < 0, False, {self.key: float(self.position > 1)}

    def render(self):
        if self.broken:
            raise RuntimeError("no driver")
        frame = np.zeros((40, 60, 3), np.uint8)
        frame[:, :30, 0] = 200
        return frame


gymnasium.register("LatentGymTest/Corridor-v0", Corridor, max_episode_steps=5)


class Contracted(Corridor):
    """Keeps the suite's contract by itself."""

    contract = EnvContract(
        env_id="LatentGymTest/Contracted-v0", suite="mine", cameras=("pixels",), control_hz=7.0, horizon=3,
        action_spec=dataclasses.replace(action_spec_of(Corridor.action_space, "Contracted"), names=("x",)),
    )  # fmt: skip


gymnasium.register("LatentGymTest/Contracted-v0", Contracted)


def test_an_environment_that_keeps_the_contract_is_left_as_it_is():
    env = make_generic("LatentGymTest/Contracted-v0")
    assert isinstance(env.unwrapped, Contracted)
    assert contract_of(env) is Contracted.contract


def test_a_module_that_registers_an_id_is_imported(tmp_path, monkeypatch):
    (tmp_path / "corridors.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import Continuous_MountainCarEnv as Car\n"
        "gymnasium.register('Corridors/C-v0', Car, max_episode_steps=4)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert contract_of(make_generic("corridors:Corridors/C-v0", pixels=False)).horizon == 4
    with pytest.raises(LatentGymError, match="module 'nowhere' cannot be imported"):
        make_generic("nowhere:Corridors/C-v0")


class Narrow(Corridor):
    """Refuses actions outside of bounds that single precision cannot hold."""

    action_space = spaces.Box(-1, 0.1, (1,), np.float64)

    def step(self, action):
        assert self.action_space.contains(action)
        return super().step(action)


gymnasium.register("LatentGymTest/Narrow-v0", Narrow, max_episode_steps=5)


def test_actions_stay_in_a_space_of_double_precision():
    env = make_generic("LatentGymTest/Narrow-v0", pixels=False)
    env.reset(seed=0)
    env.step(np.ones(1))


def test_observation_contract_and_success_come_from_the_environment():
    env = make_generic("LatentGymTest/Corridor-v0", image_size=32)
    observation, info = env.reset(seed=1)
    assert info == {"is_success": False}
    assert observation["pixels"].shape == (32, 32, 3)
    assert observation["pixels"][:, 4, 0].min() > observation["pixels"][:, -4, 0].max()
    assert observation["state"].dtype == np.float32
    assert np.array_equal(observation["proprio"], observation["state"])
    contract = contract_of(env)
    assert (contract.horizon, contract.control_hz, contract.action_spec.low) == (5, 7.0, (-1.0,))
    ends = [env.step(np.ones(1))[3:] for _ in range(5)]
    assert [truncated for truncated, _ in ends] == [False] * 4 + [True]
    assert [info for _, info in ends] == [{"is_success": True}] * 5


def test_termination_is_not_success():
    env = make_generic("LatentGymTest/Corridor-v0", key="solved")
    env.reset(seed=1)
    _, _, terminated, _, info = env.step(-np.ones(1))
    assert terminated and info["is_success"] is False


def test_mujoco_camera_does_not_depend_on_the_first_episode():
    first, second = make_generic("Reacher-v5"), make_generic("Reacher-v5")
    first.reset(seed=1)
    frames = [env.reset(seed=2)[0]["pixels"] for env in (first, second)]
    first.close()
    second.close()
    assert np.array_equal(*frames)


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("CartPole-v1", {}, "continuous actions"),
        ("Reechr-v5", {}, "did you mean 'Reacher-v5'"),
        ("LatentGymTest/Corridor-v0", {"horizon": -1}, "horizon"),
        ("LatentGymTest/Corridor-v0", {"nonsense": 1}, "cannot be made"),
    ],
)
def test_bad_input_gets_one_clear_error(env_id, options, message):
    with pytest.raises(LatentGymError, match=message):
        make_generic(env_id, **options)


def test_broken_renderer_and_nan_action_are_one_clear_error():
    with pytest.raises(LatentGymError, match="cannot render a frame: no driver"):
        make_generic("LatentGymTest/Corridor-v0", broken=True).reset(seed=0)
    env = make_generic("LatentGymTest/Corridor-v0", pixels=False)
    env.reset(seed=0)
    with pytest.raises(LatentGymError, match="NaN"):
        env.step(np.array([np.nan]))


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 40), st.integers(0, 255))
def test_resizing_keeps_a_constant_frame(height, width, size, value):
    frame = square_frame(np.full((height, width, 3), value, np.uint8), size)
    assert frame.shape == (size, size, 3) and frame.dtype == np.uint8
    assert np.all(frame == value)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=2))
def test_checked_actions_lie_in_the_space(values):
    space = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 2], np.float32))
    assert space.contains(checked_action(values, space, "test"))


def test_described_actions_replace_the_spec_but_not_the_bounds():
    env = make_generic("LatentGymTest/Corridor-v0", pixels=False)
    spec = dataclasses.replace(contract_of(env).action_spec, names=("dx",), units=("m",), mode="delta")
    assert contract_of(ActionSpecWrapper(env, spec)).action_spec.names == ("dx",)
    with pytest.raises(LatentGymError, match="bounds"):
        ActionSpecWrapper(env, dataclasses.replace(spec, high=(2.0,)))


def test_unbounded_actions_are_refused():
    with pytest.raises(LatentGymError, match="unbounded"):
        action_spec_of(spaces.Box(-np.inf, np.inf, (2,)))


def test_success_prefers_the_first_key():
    env = SuccessInfo(Corridor(key="won"), keys=("won", "success"))
    env.reset(seed=0)
    assert env.step(np.ones(1))[4]["is_success"] is True
