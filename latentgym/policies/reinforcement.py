"""Reinforcement learning on frozen latents with Stable-Baselines3: PPO, SAC, TD3, and hindsight where there are goals.

The learner sees :class:`~latentgym.envs.wrappers.LatentObservation` alone: frames are encoded once, when they are
rendered, and latents fill the replay buffer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from latentgym.encoders.contract import Encoder
from latentgym.envs.make import make_env
from latentgym.envs.wrappers import LatentObservation
from latentgym.envs.wrappers.latent_space import LatentGoalSpace, shared_encoder
from latentgym.errors import LatentGymError, UnknownNameError, require
from latentgym.policies.stable_baselines import StableBaselinesPolicy
from latentgym.seeding import derive_seed

ALGORITHMS = {"ppo": "PPO", "sac": "SAC", "td3": "TD3"}
"""Algorithms by name, and their classes in Stable-Baselines3."""
_OFF_POLICY = ("sac", "td3")
_SEED_BITS = 2**32

Checkpoint = Callable[[int, StableBaselinesPolicy], Mapping[str, Any] | None]


class _CallerError(Exception):
    """What a callback of the caller raised, which is no failure of training."""

    def __init__(self, raised: Exception) -> None:
        super().__init__(raised)
        self.raised = raised


@dataclasses.dataclass
class LearningCurve:
    """Every training episode, acted with exploration, and what was found at checkpoints.

    Attributes:
        step: environment steps of the whole training at the end of each episode.
        reward: sum of each episode's rewards.
        success: whether ``is_success`` was true at some step of it.
        length: its number of steps.
        checkpoints: what ``on_checkpoint`` returned, with its ``"step"``.
    """

    step: list[int] = dataclasses.field(default_factory=list)
    reward: list[float] = dataclasses.field(default_factory=list)
    success: list[bool] = dataclasses.field(default_factory=list)
    length: list[int] = dataclasses.field(default_factory=list)
    checkpoints: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def train_rl(
    env_id: str,
    encoder: Encoder | str,
    *,
    algorithm: str = "sac",
    steps: int = 50_000,
    seed: int = 0,
    history: int = 1,
    keep: Sequence[str] = (),
    pooling: str | None = None,
    normalize: bool = True,
    env_options: Mapping[str, Any] | None = None,
    algorithm_options: Mapping[str, Any] | None = None,
    checkpoint_every: int | None = None,
    on_checkpoint: Checkpoint | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StableBaselinesPolicy:
    """Learn a policy from rewards, on frozen latents.

    Episodes run to the environment's own end; reaching success does not end them, since it would end their rewards too.
    The policy after the last step is returned: none is selected by reward or success.

    Args:
        env_id: environment, as for :func:`latentgym.make_env`.
        encoder: the frozen encoder, or its name, folder or hub id.
        algorithm: ``"ppo"`` (Schulman et al., arXiv 1707.06347), ``"sac"`` (Haarnoja et al., arXiv 1801.01290) or
            ``"td3"`` (Fujimoto et al., arXiv 1802.09477). In a goal environment the last two relabel goals in hindsight
            (Andrychowicz et al., arXiv 1707.01495).
        steps: environment steps; PPO finishes the rollout that it has begun.
        seed: root seed of weights, exploration and episodes; equal seeds give equal bits on one machine.
        history: latents that the policy sees.
        keep: observation keys of vectors that it sees beside them, such as ``["proprio"]``.
        pooling: how tokens become a vector; the encoder's default if ``None``.
        normalize: whether observations are standardised by running moments and, for PPO, rewards scaled by their
            running spread.
        env_options: options of :func:`latentgym.make_env`.
        algorithm_options: arguments of the algorithm's class in Stable-Baselines3, such as ``{"learning_rate": 1e-3}``.
        checkpoint_every: steps between calls of ``on_checkpoint``.
        on_checkpoint: called with (steps done, policy as it is now); what it returns stands in the learning curve.
        progress: called with (steps done, steps in all).

    Returns:
        The policy; ``policy.facts`` holds the settings and, as ``"curve"``, the fields of :class:`LearningCurve`.

    Raises:
        UnknownNameError: if there is no such algorithm or option.
        MissingExtraError: if Stable-Baselines3 is not installed.
        LatentGymError: if the environment's actions are not continuous, an argument is invalid, or training diverges.
    """
    if algorithm not in ALGORITHMS:
        raise UnknownNameError("algorithm", algorithm, ALGORITHMS)
    if min(steps, history, checkpoint_every or 1) < 1:
        raise LatentGymError("train_rl: steps, history and checkpoint_every must be at least 1")
    require("stable_baselines3", "rl")
    shared = shared_encoder(encoder)
    settings = {"history": history, "keep": list(keep), "pooling": pooling}
    env = _latent_env(env_id, shared, env_options or {}, settings)
    curve = LearningCurve()
    with contextlib.closing(env), _private_randomness():
        model = _model(algorithm, env, normalize, derive_seed(seed, "train-rl") % _SEED_BITS, algorithm_options or {})
        StableBaselinesPolicy.from_model(model, shared)  # an actor that cannot be read is refused before it learns
        follow = _follower(curve, shared, checkpoint_every, on_checkpoint, steps, progress)
        try:
            model.learn(steps, callback=follow)
        except _CallerError as error:
            raise error.raised from None
        except (TypeError, ValueError, RuntimeError) as error:
            raise LatentGymError(
                f"{algorithm} on {shared.spec.name!r} in {env_id} stopped after {model.num_timesteps} steps: {error}; "
                "check the algorithm's options; if it diverged, lower learning_rate"
            ) from error
        policy = StableBaselinesPolicy.from_model(model, shared)
    policy.facts = {
        "algorithm": algorithm, "seed": seed, "steps": int(model.num_timesteps), "normalize": normalize,
        "algorithm_options": dict(algorithm_options or {}), "curve": dataclasses.asdict(curve),
    }  # fmt: skip
    return policy


def _latent_env(
    env_id: str, encoder: Encoder, env_options: Mapping[str, Any], settings: Mapping[str, Any]
) -> LatentObservation:
    pixels = encoder.spec.modality == "pixels"
    env = LatentObservation(make_env(env_id, **{"pixels": pixels, **env_options}), encoder, **settings)
    if not isinstance(env.action_space, spaces.Box):
        env.close()
        raise LatentGymError(f"{env_id} takes {env.action_space}; policies here put out continuous actions (a Box)")
    return env


@contextlib.contextmanager
def _private_randomness() -> Iterator[None]:
    """Stable-Baselines3 seeds Python's, NumPy's and torch's global generators; give them back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _model(algorithm: str, env: gymnasium.Env[Any, Any], normalize: bool, seed: int, options: Mapping[str, Any]) -> Any:
    import stable_baselines3
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    kind = getattr(stable_baselines3, ALGORITHMS[algorithm])
    known = set(inspect.signature(kind).parameters) - {"policy", "env", "seed", "_init_setup_model", "verbose"}
    for name in options:
        if name not in known:
            raise UnknownNameError(f"option of {algorithm}", name, known)
    goals = isinstance(env.observation_space, LatentGoalSpace)
    chosen: dict[str, Any] = {"device": "cpu", **options}
    if goals and algorithm in _OFF_POLICY:
        # Goals can be relabelled only once an episode is complete.
        horizon = getattr(getattr(env, "contract", None), "horizon", 0)
        chosen = {"replay_buffer_class": stable_baselines3.HerReplayBuffer, "learning_starts": 100, **chosen}
        chosen["learning_starts"] = max(chosen["learning_starts"], 2 * horizon)
    vector: Any = DummyVecEnv([lambda: env])
    if normalize:
        vector = VecNormalize(vector, norm_reward=algorithm not in _OFF_POLICY, gamma=chosen.get("gamma", 0.99))
    try:
        # The class keeps and changes the policy_kwargs that it is given.
        chosen["policy_kwargs"] = dict(chosen.get("policy_kwargs") or {})
        return kind("MultiInputPolicy" if goals else "MlpPolicy", vector, seed=seed, **chosen)
    except (TypeError, ValueError, AssertionError) as error:
        raise LatentGymError(f"{algorithm} does not take {dict(options)}: {error}") from error


def _follower(
    curve: LearningCurve,
    encoder: Encoder,
    every: int | None,
    on_checkpoint: Checkpoint | None,
    steps: int,
    progress: Callable[[int, int], None] | None,
) -> Callable[[dict[str, Any], dict[str, Any]], bool]:
    """A callback of Stable-Baselines3 that fills ``curve``."""
    running: dict[str, Any] = {"reward": 0.0, "success": False, "length": 0}

    def follow(names: dict[str, Any], _: dict[str, Any]) -> bool:
        model, info = names["self"], names["infos"][0]
        normalisation = model.get_vec_normalize_env()
        rewards = names["rewards"] if normalisation is None else normalisation.get_original_reward()
        running["reward"] += float(rewards[0])
        running["success"] |= bool(info.get("is_success", False))
        running["length"] += 1
        if names["dones"][0]:
            curve.step.append(int(model.num_timesteps))
            for name, values in (("reward", curve.reward), ("success", curve.success), ("length", curve.length)):
                values.append(running[name])
            running.update(reward=0.0, success=False, length=0)
        done = int(model.num_timesteps)
        try:
            if progress is not None:
                progress(min(done, steps), steps)
            if on_checkpoint is not None and every is not None and done % every == 0:
                found = on_checkpoint(done, StableBaselinesPolicy.from_model(model, encoder))
                curve.checkpoints.append({"step": done, **(found or {})})
        except Exception as error:
            raise _CallerError(error) from error
        return True

    return follow
