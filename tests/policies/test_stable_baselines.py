from __future__ import annotations

import dataclasses
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction, TransformAction

from latentgym.encoders import load_encoder
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.envs import make_env
from latentgym.envs.wrappers import LatentObservation
from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.policies import StableBaselinesPolicy, load_policy
from latentgym.rollouts import evaluate, resolve_policy

sb3 = pytest.importorskip("stable_baselines3")

REACH = "latentgym/TabletopReach-v0"
OPTIONS = {"image_size": 32, "horizon": 6}


def small(**options: Any) -> dict[str, Any]:
    # Stable-Baselines3 writes into the policy_kwargs that it is given.
    return {"policy_kwargs": {"net_arch": [16, 8]}, "device": "cpu", "seed": 0, **options}


def latent_env(history: int = 2) -> LatentObservation:
    return LatentObservation(make_env(REACH, **OPTIONS), "pixels", history=history, keep=["proprio"])


def ppo(env: Any, **options: Any) -> Any:
    return sb3.PPO("MlpPolicy", env, n_steps=16, batch_size=8, **small(**options))


def sac(env: Any, **options: Any) -> Any:
    return sb3.SAC("MlpPolicy", env, learning_starts=8, buffer_size=64, batch_size=8, **small(**options))


def td3(env: Any, **options: Any) -> Any:
    return sb3.TD3("MlpPolicy", env, learning_starts=8, buffer_size=64, batch_size=8, **small(**options))


def same_actions(model: Any, policy: Any, normalise: Any = None) -> None:
    """The policy acts on raw observations as the model does on latents."""
    raw, wrapped = make_env(REACH, **OPTIONS), latent_env()
    policy.bind([raw])
    policy.reset(np.ones(1, bool))
    (observation, _), (latents, _) = raw.reset(seed=3), wrapped.reset(seed=3)
    for _ in range(4):
        expected, _ = model.predict(latents if normalise is None else normalise(latents), deterministic=True)
        found = policy.act({key: np.asarray(value)[None] for key, value in observation.items()})[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        observation, latents = raw.step(expected)[0], wrapped.step(expected)[0]


@pytest.mark.parametrize("make", [ppo, sac, td3])
def test_a_model_file_is_a_policy(make: Any, tmp_path: Path) -> None:
    model = make(latent_env()).learn(16)
    model.save(tmp_path / "model.zip")
    policy = resolve_policy(tmp_path / "model.zip")
    same_actions(model, policy)
    same_actions(model, StableBaselinesPolicy.from_model(model))
    assert evaluate(REACH, model, seeds=range(3)).records == evaluate(REACH, policy, seeds=range(3)).records
    assert isinstance(policy, StableBaselinesPolicy)
    again = load_policy(policy.save(tmp_path / "policy"))
    same_actions(model, again)
    records = evaluate(REACH, again, seeds=range(3), batch_size=2).records
    assert [record.steps for record in records] == [6, 6, 6]
    assert records == evaluate(REACH, policy, seeds=range(3), batch_size=2).records


def test_activations_are_those_of_the_model(tmp_path: Path) -> None:
    import torch

    model = ppo(latent_env(), policy_kwargs={"net_arch": [16], "activation_fn": torch.nn.ELU})
    model.save(tmp_path / "model")
    same_actions(model, load_policy(tmp_path / "model.zip"))


def test_latents_not_pixels_fill_the_replay_buffer() -> None:
    model = sac(latent_env(history=1)).learn(10)
    assert model.replay_buffer.observations.shape == (64, 1, 16 * 16 * 3 + 6)
    assert model.replay_buffer.observations.dtype == np.float32


def test_normalised_observations_stay_normalised(tmp_path: Path) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    normalisation = VecNormalize(DummyVecEnv([latent_env]), norm_reward=False)
    model = ppo(normalisation).learn(16)
    policy = load_policy(StableBaselinesPolicy.from_model(model).save(tmp_path / "policy"))
    same_actions(model, policy, normalisation.normalize_obs)


def test_a_file_trained_behind_normalisation_is_not_opened_without(tmp_path: Path) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    normalisation = VecNormalize(DummyVecEnv([latent_env]), norm_reward=False)
    for make in (ppo, sac):
        model = make(normalisation).learn(16)
        model.save(tmp_path / make.__name__)
        if make is ppo:
            with pytest.raises(LatentGymError, match="behind VecNormalize"):
                load_policy(tmp_path / "ppo.zip")
        policy = StableBaselinesPolicy.from_file(tmp_path / f"{make.__name__}.zip", normalisation=normalisation)
        same_actions(model, policy, normalisation.normalize_obs)
    model = ppo(VecNormalize(DummyVecEnv([latent_env]), norm_obs=False)).learn(16)
    model.save(tmp_path / "rewards")
    for normalisation in (False, model.get_vec_normalize_env()):
        policy = StableBaselinesPolicy.from_file(tmp_path / "rewards.zip", normalisation=normalisation)
        same_actions(model, policy)
    with pytest.raises(LatentGymError, match=r"expected a VecNormalize .* found str"):
        StableBaselinesPolicy.from_file(tmp_path / "rewards.zip", normalisation="vec.pkl")


@pytest.mark.parametrize("make", [ppo, sac])
def test_actions_are_scaled_as_they_were_for_the_learner(make: Any, tmp_path: Path) -> None:
    raw = make_env(REACH, **OPTIONS)
    wrapped = LatentObservation(RescaleAction(make_env(REACH, **OPTIONS), -5, 5), "pixels")
    model = make(wrapped).learn(16)
    model.save(tmp_path / "model")
    opened = load_policy(tmp_path / "model.zip")
    again = load_policy(opened.save(tmp_path / "policy"))
    (observation, _), (latents, _) = raw.reset(seed=3), wrapped.reset(seed=3)
    given, _ = model.predict(latents, deterministic=True)
    expected = wrapped.env.action(given)  # type: ignore[attr-defined]
    assert not np.allclose(given, expected)
    for policy in (opened, again, StableBaselinesPolicy.from_model(model)):
        policy.bind([raw])
        policy.reset(np.ones(1, bool))
        found = policy.act({key: np.asarray(value)[None] for key, value in observation.items()})[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_actions_behind_an_unknown_wrapper_are_refused(tmp_path: Path) -> None:
    inner = TransformAction(make_env(REACH, **OPTIONS), lambda action: -action, None)
    model = ppo(LatentObservation(inner, "pixels"))
    outside = ppo(TransformAction(LatentObservation(make_env(REACH, **OPTIONS), "pixels"), lambda a: -a, None))
    for changed in (model, outside):
        with pytest.raises(LatentGymError, match="trained behind TransformAction"):
            StableBaselinesPolicy.from_model(changed)


def test_an_environment_without_a_contract_is_remembered_by_its_id_and_camera(tmp_path: Path) -> None:
    raw = gymnasium.make("Reacher-v5", render_mode="rgb_array", width=32, height=32)
    ppo(LatentObservation(raw, "pixels")).save(tmp_path / "model")
    policy = load_policy(tmp_path / "model")  # Stable-Baselines3 has added .zip
    assert isinstance(policy, StableBaselinesPolicy) and policy.camera == "pixels"
    policy.bind([make_env("Reacher-v5", image_size=32)])
    again = load_policy(policy.save(tmp_path / "policy"))
    again.bind([make_env("gymnasium.envs.mujoco:Reacher-v5", image_size=32)])
    with pytest.raises(LatentGymError, match=r"trained in 'Reacher-v5'"):
        again.bind([make_env("Swimmer-v5", image_size=32)])
    renamed = gymnasium.wrappers.TransformObservation(
        make_env(REACH, **OPTIONS),
        lambda seen: {"wrist": seen["pixels"]},
        spaces.Dict({"wrist": spaces.Box(0, 255, (32, 32, 3), np.uint8)}),
    )
    assert StableBaselinesPolicy.from_model(ppo(LatentObservation(renamed, "pixels", camera="wrist"))).camera == "wrist"


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ppo(latent_env()).save(tmp_path / "model.zip")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was unpickled")

    import pickle

    import cloudpickle

    for module in (pickle, cloudpickle):
        monkeypatch.setattr(module, "loads", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    load_policy(tmp_path / "model.zip")


def test_a_model_for_another_environment_or_encoder_is_refused(tmp_path: Path) -> None:
    ppo(latent_env()).save(tmp_path / "model.zip")
    policy = load_policy(tmp_path / "model.zip")
    with pytest.raises(LatentGymError, match="image_size: trained on 32, found 64"):
        policy.bind([make_env(REACH)])
    with pytest.raises(LatentGymError, match="does not fit encoder"):
        load_policy(tmp_path / "model.zip", load_encoder("pixels", image_size=8))


def test_a_model_on_an_encoder_object_is_opened_with_its_layer(tmp_path: Path) -> None:
    ensure_torchvision()
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(tmp_path / "encoder")
    encoder = load_encoder(tmp_path / "encoder", layer=0)
    model = ppo(LatentObservation(make_env(REACH, **OPTIONS), encoder))
    model.save(tmp_path / "model")
    assert StableBaselinesPolicy.from_model(model).encoder is encoder
    expected = evaluate(REACH, model, seeds=range(2)).records
    del model, encoder
    policy = load_policy(tmp_path / "model.zip")
    assert policy.encoder is not None and policy.encoder.spec.layer == 0
    assert evaluate(REACH, policy, seeds=range(2)).records == expected


def test_a_model_on_an_encoder_of_this_process_alone_says_what_to_pass(tmp_path: Path) -> None:
    encoder = load_encoder("random")
    encoder.spec = dataclasses.replace(encoder.spec, name="mine", source="")
    model = ppo(LatentObservation(make_env(REACH, **OPTIONS), encoder))
    model.save(tmp_path / "model")
    assert load_policy(tmp_path / "model.zip").encoder is encoder  # as long as it is in use
    program = "import sys; from latentgym.policies import load_policy; load_policy(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model.zip")], capture_output=True, text=True, check=False
    )
    assert "the encoder 'mine' of policy" in done.stderr and "load_policy(path, encoder)" in done.stderr


def test_a_model_that_does_not_say_where_it_comes_from_needs_an_encoder(tmp_path: Path) -> None:
    plain = gymnasium.wrappers.FlattenObservation(
        gymnasium.wrappers.FilterObservation(make_env(REACH, pixels=False), ["state"])
    )
    model = ppo(plain)
    model.save(tmp_path / "model.zip")
    with pytest.raises(LatentGymError, match="which latents"):
        load_policy(tmp_path / "model.zip")
    policy = load_policy(tmp_path / "model.zip", "state")
    env = make_env(REACH, pixels=False)
    policy.bind([env])
    policy.reset(np.ones(1, bool))
    observation, _ = env.reset(seed=0)
    expected, _ = model.predict(observation["state"], deterministic=True)
    found = policy.act({key: np.asarray(value)[None] for key, value in observation.items()})[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(CorruptDataError, match="no model file"):
        load_policy(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("data", "{}")
    with pytest.raises(CorruptDataError, match="no model file"):
        load_policy(tmp_path / "empty.zip")
    convolutional = sb3.PPO("CnnPolicy", Frames(), n_steps=8, batch_size=8, device="cpu")
    convolutional.save(tmp_path / "pixels.zip")
    with pytest.raises(LatentGymError, match="network of its own"):
        load_policy(tmp_path / "pixels.zip", "pixels")


class Frames(gymnasium.Env[Any, Any]):
    observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = spaces.Box(-1, 1, (2,), np.float32)


class GoalPoint(gymnasium.Env[Any, Any]):
    """A point that moves to a goal in the plane; frames show where it is."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        plane = spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = spaces.Dict({"observation": plane, "achieved_goal": plane, "desired_goal": plane})
        self.action_space = plane

    def render(self) -> np.ndarray:  # type: ignore[override]
        frame = np.zeros((32, 32, 3), np.uint8)
        row, column = ((self._place + 1) * 15).astype(int)
        frame[row : row + 2, column : column + 2] = 255
        return frame

    def _observe(self) -> dict[str, np.ndarray]:
        place = self._place.astype(np.float32)
        return {"observation": place, "achieved_goal": place, "desired_goal": self._goal.astype(np.float32)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._place, self._goal = self.np_random.uniform(-1, 1, (2, 2))
        return self._observe(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._place = np.clip(self._place + 0.2 * action, -1, 1)
        reward = float(self.compute_reward(self._place, self._goal, {}))
        return self._observe(), reward, False, False, {"is_success": reward == 0}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:
        return np.asarray(-(np.linalg.norm(achieved - desired, axis=-1) > 0.2).astype(np.float32))


@pytest.fixture
def goal_env() -> Iterator[str]:
    gymnasium.register("latentgym-test/GoalPoint-v0", entry_point=GoalPoint, max_episode_steps=8)
    yield "latentgym-test/GoalPoint-v0"
    del gymnasium.registry["latentgym-test/GoalPoint-v0"]


def test_hindsight_replay_learns_on_a_goal_environment(goal_env: str, tmp_path: Path) -> None:
    env = LatentObservation(make_env(goal_env, image_size=32), "pixels")
    model = sb3.SAC(
        "MultiInputPolicy", env, replay_buffer_class=sb3.HerReplayBuffer, learning_starts=16, buffer_size=64,
        batch_size=8, **small(),
    )  # fmt: skip
    model.learn(24).save(tmp_path / "model.zip")
    assert model.replay_buffer.observations["observation"].shape == (64, 1, 768)
    policy = load_policy(tmp_path / "model.zip")
    raw = make_env(goal_env, image_size=32)
    policy.bind([raw])
    policy.reset(np.ones(1, bool))
    (observation, _), (latents, _) = raw.reset(seed=1), env.reset(seed=1)
    expected, _ = model.predict(latents, deterministic=True)
    found = policy.act({key: np.asarray(value)[None] for key, value in observation.items()})[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert evaluate(goal_env, policy, seeds=range(2)).summary.episodes == 2


def test_goal_environments_of_latents_pass_the_checker(goal_env: str) -> None:
    from stable_baselines3.common.env_checker import check_env

    check_env(LatentObservation(make_env(goal_env, image_size=32), "pixels"))


def test_normalised_goals_stay_normalised(goal_env: str) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    def goal_latents() -> LatentObservation:
        return LatentObservation(make_env(goal_env, image_size=32), "pixels")

    normalisation = VecNormalize(DummyVecEnv([goal_latents]), norm_reward=False)
    model = sb3.SAC(
        "MultiInputPolicy", normalisation, replay_buffer_class=sb3.HerReplayBuffer, learning_starts=16, buffer_size=64,
        batch_size=8, **small(),
    )  # fmt: skip
    policy = StableBaselinesPolicy.from_model(model.learn(24))
    raw, env = make_env(goal_env, image_size=32), goal_latents()
    policy.bind([raw])
    policy.reset(np.ones(1, bool))
    (observation, _), (latents, _) = raw.reset(seed=1), env.reset(seed=1)
    expected, _ = model.predict(normalisation.normalize_obs(latents), deterministic=True)
    found = policy.act({key: np.asarray(value)[None] for key, value in observation.items()})[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    normalisation.obs_rms.pop("desired_goal")
    with pytest.raises(LatentGymError, match="leaves desired_goal as they are"):
        StableBaselinesPolicy.from_model(model)
