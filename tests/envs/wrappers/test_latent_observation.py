from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgym.encoders import View, encode_view, load_encoder
from latentgym.encoders.pretraining import pretrain
from latentgym.envs import make_env
from latentgym.envs.recording import record
from latentgym.envs.wrappers import LatentObservation, VectorLatentObservation
from latentgym.errors import LatentGymError
from latentgym.trajectories import Dataset

REACH = "latentgym/TabletopReach-v0"
SHORT = {"horizon": 4, "image_size": 32}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("wrappers") / "reach"
    return record(REACH, folder, episodes=5, policy="expert", seed=0, image_size=32)


@pytest.fixture(scope="module")
def clip_encoder(dataset: Dataset) -> Path:
    """A small encoder of clips: what it says of a frame depends on the frames before."""
    return pretrain("masked_video", [(dataset, (0, 1, 2))], out=dataset.path.parent / "clips", steps=1, batch_size=2)


class Moving(gymnasium.Env[Any, Any]):
    """Random frames, of which the first of an episode is told by its seed; episodes of a given length."""

    def __init__(self, length: int = 3, *, goal: bool = False) -> None:
        frame = spaces.Box(0, 255, (16, 16, 3), np.uint8)
        goals = {key: spaces.Box(-1, 1, (2,), np.float32) for key in ("achieved_goal", "desired_goal")}
        self.observation_space = spaces.Dict({"pixels": frame, **goals}) if goal else frame
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self._length, self._goal, self._steps = length, goal, 0

    def _observe(self) -> Any:
        frame = self.np_random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        if not self._goal:
            return frame
        return {"pixels": frame, "achieved_goal": np.zeros(2, np.float32), "desired_goal": np.ones(2, np.float32)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return self._observe(), 0.0, self._steps >= self._length, False, {}


def test_latents_are_those_of_offline_encoding(dataset: Dataset, clip_encoder: Path) -> None:
    episode = dataset.episode(0)
    for source in ("random", str(clip_encoder), "state"):
        env = LatentObservation(make_env(REACH, image_size=32, horizon=len(episode)), source)
        encoder = load_encoder(source)
        observations = episode.state if source == "state" else episode.frames["pixels"]
        expected = encode_view(encoder, observations, View("causal"))
        found = [env.reset(seed=episode.seed)[0], *(env.step(action)[0] for action in episode.action)]
        np.testing.assert_allclose(np.stack(found), expected, atol=1e-5)


def test_history_is_the_last_latents_with_the_first_repeated() -> None:
    plain = LatentObservation(make_env(REACH, **SHORT), "pixels")
    env = LatentObservation(make_env(REACH, **SHORT), "pixels", history=3, keep=["proprio"])
    latents = [plain.reset(seed=1)[0], *(plain.step(np.ones(3, np.float32))[0] for _ in range(3))]
    first, _ = env.reset(seed=1)
    np.testing.assert_array_equal(first[:-6].reshape(3, -1), np.stack([latents[0]] * 3))
    for _ in range(3):
        last, *_ = env.step(np.ones(3, np.float32))
    np.testing.assert_array_equal(last[:-6].reshape(3, -1), np.stack(latents[1:]))
    np.testing.assert_array_equal(last[-6:], env.unwrapped._observe()["proprio"])  # type: ignore[attr-defined]


def test_gymnasium_and_stable_baselines_accept_it() -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    env = LatentObservation(make_env(REACH, **SHORT), "random", history=2)
    check_env(env, skip_render_check=True)
    checker.check_env(env)


def test_stable_baselines_takes_an_environment_without_goals_for_what_it_is() -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(LatentObservation(make_env("Reacher-v5", pixels=False), "state"))


def test_the_spec_rebuilds_it_through_json_and_in_other_processes() -> None:
    env = LatentObservation(make_env(REACH, **SHORT), "random", history=2)
    text = env.spec.to_json()  # type: ignore[union-attr]
    assert json.loads(text)["additional_wrappers"][-1]["kwargs"]["encoder"] == "random"
    expected, _ = env.reset(seed=3)
    for again in (gymnasium.make(EnvSpec.from_json(text)), pickle.loads(pickle.dumps(env))):
        np.testing.assert_array_equal(again.reset(seed=3)[0], expected)


def test_gymnasium_make_adds_it() -> None:
    wrapper = LatentObservation.wrapper_spec(encoder="pixels")
    spec = dataclasses.replace(gymnasium.spec(REACH), additional_wrappers=(wrapper,))
    env = gymnasium.make(spec, image_size=32)
    assert env.reset(seed=0)[0].shape == (768,)


def test_a_goal_environment_stays_one() -> None:
    env = LatentObservation(Moving(goal=True), "pixels", history=2)
    observation, _ = env.reset(seed=0)
    assert sorted(observation) == ["achieved_goal", "desired_goal", "observation"]
    assert observation["observation"].shape == (2 * 768,)
    assert env.observation_space.contains(observation)


def test_frames_are_rendered_where_none_are_observed() -> None:
    env = LatentObservation(gymnasium.make("InvertedPendulum-v5", render_mode="rgb_array"), "pixels")
    observation, _ = env.reset(seed=0)
    expected = encode_view(load_encoder("pixels"), env.render()[None], View("single"))[0]  # type: ignore[index]
    np.testing.assert_array_equal(observation, expected)


class TwoCameras(gymnasium.Env[Any, Any]):
    """States no contract and draws black; its cameras see grey."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self, names: Sequence[str]) -> None:
        self.observation_space = spaces.Dict({name: spaces.Box(0, 255, (8, 8, 3), np.uint8) for name in names})
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return {name: np.full((8, 8, 3), 200, np.uint8) for name in self.observation_space}, {}

    def step(self, action: Any) -> Any:
        return self.reset()[0], 0.0, False, False, {}

    def render(self) -> Any:
        return np.zeros((8, 8, 3), np.uint8)


def test_the_only_observed_frames_are_taken_whatever_they_are_called() -> None:
    env = LatentObservation(TwoCameras(["image"]), "pixels")
    np.testing.assert_array_equal(
        env.reset(seed=0)[0], LatentObservation(TwoCameras(["image"]), "pixels", camera="image").reset(seed=0)[0]
    )
    with pytest.raises(LatentGymError, match="camera='left'"):
        LatentObservation(TwoCameras(["left", "right"]), "pixels")


@pytest.mark.parametrize("vector", [SyncVectorEnv, partial(AsyncVectorEnv, context="spawn")])
def test_a_vector_of_environments_without_a_contract(vector: Any) -> None:
    envs = VectorLatentObservation(vector([partial(TwoCameras, ["image"])] * 2), "pixels")
    assert envs.reset(seed=0)[0].shape == (2, 768)
    envs.close()


def test_an_encoder_with_a_feeding_may_be_given_itself() -> None:
    env = LatentObservation(make_env(REACH, **SHORT), load_encoder("random+causal"))
    expected = LatentObservation(make_env(REACH, **SHORT), "random+causal")
    np.testing.assert_array_equal(env.reset(seed=0)[0], expected.reset(seed=0)[0])


@pytest.mark.parametrize("arguments", [{"history": 0}, {"camera": "nowhere"}, {"keep": ["nothing"]}])
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(LatentGymError, match="latent observation"):
        LatentObservation(make_env(REACH, **SHORT), "pixels", **arguments)


def test_without_pixels_the_error_says_what_to_do() -> None:
    with pytest.raises(LatentGymError, match="pixels=True"):
        LatentObservation(make_env(REACH, pixels=False), "pixels")


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    mode=st.sampled_from([AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]),
    history=st.integers(1, 3),
)
def test_rows_of_a_vector_are_single_environments(lengths: list[int], mode: AutoresetMode, history: int) -> None:
    """Whatever ends when: each row equals a wrapper of its own, final observations included."""
    makers: list[Callable[[], Any]] = [lambda length=length: Moving(length) for length in lengths]
    vector = VectorLatentObservation(SyncVectorEnv(makers, autoreset_mode=mode), "pixels", history=history)
    inner = [lambda make=make: LatentObservation(make(), "pixels", history=history) for make in makers]
    singles = SyncVectorEnv(inner, autoreset_mode=mode)
    np.testing.assert_array_equal(vector.reset(seed=5)[0], singles.reset(seed=5)[0])
    for _ in range(7):
        action = np.zeros((len(lengths), 2), np.float32)
        found, expected = vector.step(action), singles.step(action)
        np.testing.assert_array_equal(found[0], expected[0])
        for one, other in zip(found[4].get("final_obs", []), expected[4].get("final_obs", []), strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                np.testing.assert_array_equal(one, other)


def test_rows_reset_on_request_begin_anew_and_the_others_stand_still() -> None:
    envs = SyncVectorEnv([lambda: Moving(9)] * 3, autoreset_mode=AutoresetMode.DISABLED)
    vector = VectorLatentObservation(envs, "pixels", history=2)
    vector.reset(seed=0)
    before = vector.step(np.zeros((3, 2), np.float32))[0]
    after, _ = vector.reset(seed=7, options={"reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert not np.array_equal(after[1], before[1])
    np.testing.assert_array_equal(after[1, :768], after[1, 768:])


def test_a_clip_encoder_streams_in_every_row(clip_encoder: Path) -> None:
    makers = [lambda: make_env(REACH, **SHORT)] * 2
    vector = VectorLatentObservation(SyncVectorEnv(makers), str(clip_encoder))
    single = LatentObservation(makers[1](), str(clip_encoder))
    vector.reset(seed=0)
    single.reset(seed=1)
    for _ in range(3):
        latents = vector.step(np.ones((2, 3), np.float32))[0]
        np.testing.assert_allclose(latents[1], single.step(np.ones(3, np.float32))[0], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_wrapped_environments_travel_to_worker_processes(context: str) -> None:
    env = LatentObservation(make_env(REACH, **SHORT), "pixels")
    workers = AsyncVectorEnv([lambda: pickle.loads(pickle.dumps(env))] * 2, context=context)
    batched = AsyncVectorEnv([lambda: make_env(REACH, **SHORT)] * 2, context=context)
    encoded = VectorLatentObservation(batched, "pixels")
    np.testing.assert_array_equal(workers.reset(seed=4)[0], encoded.reset(seed=4)[0])
    np.testing.assert_array_equal(
        workers.step(np.ones((2, 3), np.float32))[0], encoded.step(np.ones((2, 3), np.float32))[0]
    )
    workers.close()
    encoded.close()
