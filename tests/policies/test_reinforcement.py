from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.policies import StableBaselinesPolicy, load_policy, train_rl
from latentgym.rollouts import evaluate

pytest.importorskip("stable_baselines3")

REACH = "latentgym/TabletopReach-v0"
NARROW = {"policy_kwargs": {"net_arch": [16]}, "batch_size": 8}
OPTIONS: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": 16, **NARROW},
    "sac": {"learning_starts": 8, **NARROW},
    "td3": {"learning_starts": 8, **NARROW},
}


def learn(algorithm: str, encoder: Any = "state", steps: int = 32, **options: Any) -> StableBaselinesPolicy:
    settings: dict[str, Any] = {"env_options": {"horizon": 8}, "algorithm_options": OPTIONS[algorithm], **options}
    return train_rl(REACH, encoder, algorithm=algorithm, steps=steps, **settings)


@pytest.mark.parametrize("algorithm", OPTIONS)
def test_equal_seeds_give_equal_policies_and_touch_no_global_randomness(algorithm: str) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(7)
    expected = draw()
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(7)
    policies = [learn(algorithm, seed=seed) for seed in (0, 0, 1)]
    assert draw() == expected
    first, same, other = (policy.tensors() for policy in policies)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert policies[0].facts == policies[1].facts


def test_the_curve_holds_every_episode_and_checkpoint() -> None:
    seen = []

    def look(step: int, policy: StableBaselinesPolicy) -> dict[str, Any]:
        summary = evaluate(REACH, policy, seeds=range(2), env_options={"horizon": 8}).summary
        seen.append(step)
        return {"successes": summary.successes}

    curve = learn("sac", checkpoint_every=16, on_checkpoint=look).facts["curve"]
    assert curve["step"] == [8, 16, 24, 32]
    assert curve["length"] == [8, 8, 8, 8]
    assert all(reward < 0 for reward in curve["reward"]), "rewards are the environment's own, not normalised ones"
    assert seen == [16, 32]
    assert [item["step"] for item in curve["checkpoints"]] == seen


def test_a_checkpoint_is_a_copy_that_training_leaves_alone() -> None:
    kept: list[StableBaselinesPolicy] = []

    def keep(_: int, policy: StableBaselinesPolicy) -> dict[str, Any]:
        kept.append(policy)
        return {name: float(tensor.sum()) for name, tensor in policy.tensors().items()}

    curve = learn("sac", checkpoint_every=16, on_checkpoint=keep).facts["curve"]
    for policy, found in zip(kept, curve["checkpoints"], strict=True):
        assert {name: float(tensor.sum()) for name, tensor in policy.tensors().items()} == {
            name: value for name, value in found.items() if name != "step"
        }


def test_a_saved_policy_acts_as_before_on_latents_of_pixels(tmp_path: Path) -> None:
    policy = learn("ppo", "random", history=2, keep=["proprio"])
    assert policy.needs_pixels
    assert {"mean", "scale"} <= set(policy.tensors()), "the moments of the observations belong to the policy"
    again = load_policy(policy.save(tmp_path / "policy"))
    assert isinstance(again, StableBaselinesPolicy)
    assert again.facts == policy.facts
    options = {"seeds": range(3), "batch_size": 2, "env_options": {"horizon": 4}}
    assert evaluate(REACH, again, **options).records == evaluate(REACH, policy, **options).records
    with pytest.raises(LatentGymError, match="does not fit encoder"):
        load_policy(tmp_path / "policy", "pixels")
    with pytest.raises(LatentGymError, match="env_id: trained on"):
        evaluate("latentgym/TabletopPush-v0", again, seeds=range(1))


class Buttons(gymnasium.Env[Any, Any]):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode


def test_bad_choices_are_refused_before_training() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'sac'"):
        train_rl(REACH, "state", algorithm="sacc")
    with pytest.raises(UnknownNameError, match="option of ppo"):
        train_rl(REACH, "state", algorithm="ppo", algorithm_options={"learning_starts": 3})
    with pytest.raises(LatentGymError, match="does not take"):
        learn("sac", algorithm_options={"learning_rate": "fast"})
    with pytest.raises(LatentGymError, match="at least 1"):
        train_rl(REACH, "state", steps=0)
    gymnasium.register("latentgym-test/Buttons-v0", entry_point=Buttons, max_episode_steps=8)
    try:
        with pytest.raises(LatentGymError, match="continuous"):
            train_rl("latentgym-test/Buttons-v0", "state")
    finally:
        del gymnasium.registry["latentgym-test/Buttons-v0"]


def test_divergence_is_said() -> None:
    with pytest.raises(LatentGymError, match="lower learning_rate"):
        learn("ppo", algorithm_options={**OPTIONS["ppo"], "learning_rate": 1e30, "max_grad_norm": 1e30}, steps=64)


class Point(gymnasium.Env[Any, Any]):
    """A point that is paid for being near the origin."""

    observation_space = action_space = spaces.Box(-1, 1, (2,), np.float32)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> np.ndarray:  # type: ignore[override]
        return np.zeros((16, 16, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._place = self.np_random.choice([-0.9, 0.9], 2).astype(np.float32)
        return self._place, {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._place = np.clip(self._place + 0.2 * action, -1, 1).astype(np.float32)
        distance = float(np.linalg.norm(self._place))
        return self._place, -distance, False, False, {"is_success": distance < 0.3}


@pytest.mark.slow
def test_soft_actor_critic_learns() -> None:
    gymnasium.register("latentgym-test/Point-v0", entry_point=Point, max_episode_steps=10)
    try:
        options: dict[str, Any] = {"learning_starts": 100, "learning_rate": 3e-3, "batch_size": 64, "gamma": 0.9}
        options["policy_kwargs"] = {"net_arch": [32, 32]}
        policy = train_rl("latentgym-test/Point-v0", "state", steps=800, algorithm_options=options)
        assert evaluate("latentgym-test/Point-v0", policy, seeds=range(20), batch_size=20).summary.successes >= 18
    finally:
        del gymnasium.registry["latentgym-test/Point-v0"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"use_sde": True}, "use_sde"),
        ({"policy_kwargs": {"activation_fn": torch.nn.Mish}}, "Mish"),
        ({"policy_kwargs": 3}, "does not take"),
        ({"batch_size": "x"}, "batch_size|options"),
    ],
)
def test_what_could_not_be_opened_later_is_refused_before_training(options: dict[str, Any], words: str) -> None:
    steps: list[int] = []
    with pytest.raises(LatentGymError, match=words):
        learn("ppo", algorithm_options={**OPTIONS["ppo"], **options}, progress=lambda done, _: steps.append(done))
    assert len(steps) <= 16 and (not steps or "batch_size" in options)


def test_what_a_callback_raises_comes_back_as_it_is() -> None:
    def stop(step: int, policy: StableBaselinesPolicy) -> None:
        if step == 16:
            raise ValueError(f"enough at {step}")

    with pytest.raises(ValueError, match="enough at 16"):
        learn("sac", checkpoint_every=8, on_checkpoint=stop)


def test_a_policy_of_an_id_without_a_suite_is_evaluated_there() -> None:
    policy = train_rl("Reacher-v5", "state", algorithm="ppo", steps=16, algorithm_options=OPTIONS["ppo"])
    assert len(evaluate("Reacher-v5", policy, seeds=range(2), env_options={"horizon": 3}).records) == 2
    assert policy.training is not None and policy.training.covers("Reacher-v5")
    assert not policy.training.covers("Swimmer-v5")
