"""The environment's side of a rollout: one environment, the episode that it runs, and what is kept of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from latentgym.envs.contract import EnvContract, contract_of
from latentgym.envs.make import make_env
from latentgym.envs.provenance import Software, software_of
from latentgym.errors import LatentGymError
from latentgym.policies.contract import Policy
from latentgym.rollouts.records import EpisodeRecord, StepTrace
from latentgym.rollouts.video import write_video
from latentgym.seeding import derive_seed

Observation = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """How episodes are run, the same in every process.

    Attributes:
        env_id: environment id.
        env_options: options of ``make_env``.
        stop_at_success: whether an episode ends at its first success.
        per_step: whether records hold a trace.
        simulator_policy: the policy, if it acts on the environments themselves.
        deliberate: settings that the caller chose on purpose, to which a policy does not object.
        registered: Gymnasium's specs of ids that were registered by the caller's program, which a worker does not run.
    """

    env_id: str
    env_options: Mapping[str, Any]
    stop_at_success: bool
    per_step: bool = False
    simulator_policy: Policy | None = None
    deliberate: frozenset[str] = frozenset()
    registered: tuple[EnvSpec, ...] = ()

    def make(self) -> gymnasium.Env[Any, Any]:
        """One environment.

        Raises:
            LatentGymError: if it cannot be made.
        """
        for spec in self.registered:
            gymnasium.registry.setdefault(spec.id, spec)
        return make_env(self.env_id, **self.env_options)


@dataclasses.dataclass(frozen=True)
class Description:
    """What a policy may know of environments that run elsewhere."""

    contract: EnvContract
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    software: Software

    @classmethod
    def of(cls, env: gymnasium.Env[Any, Any]) -> Description:
        """Describe an environment; reads the GL strings of this process if it renders."""
        contract = contract_of(env)
        return cls(contract, env.observation_space, env.action_space, software_of(contract))


class DescribedEnv(gymnasium.Env[Any, Any]):
    """Stands for environments that run in other processes where a policy meets them; it cannot be stepped."""

    def __init__(self, description: Description) -> None:
        self.contract = description.contract
        self.observation_space, self.action_space = description.observation_space, description.action_space


class EpisodeRunner:
    """One environment, made when it is first needed, and the episode that it is running.

    Args:
        setting: how episodes are run.
        beat: called before everything that may take long.
    """

    def __init__(self, setting: Setting, beat: Callable[[], None] = lambda: None) -> None:
        self._setting, self._beat = setting, beat
        self._env: gymnasium.Env[Any, Any] | None = None
        self._bound: gymnasium.Env[Any, Any] | None = None
        self._seed = self._steps = 0
        self._first_success: int | None = None
        self._reward = 0.0
        self._trace: dict[str, list[Any]] = {}
        self._film: list[NDArray[np.uint8]] | None = None

    @property
    def env(self) -> gymnasium.Env[Any, Any]:
        """The environment."""
        if self._env is None:
            self._beat()
            self._env = self._setting.make()
        return self._env

    def start(self, seed: int, film: bool = False) -> Observation:
        """Begin the episode of ``seed``; ``film`` keeps its frames."""
        env = self.env
        self._beat()
        observation: Observation = env.reset(seed=seed)[0]
        self._seed, self._steps, self._first_success, self._reward = seed, 0, None, 0.0
        self._trace = {"action": [], "reward": [], "success": [], "state": []}
        self._film = [] if film else None
        self._keep(observation)
        return observation

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, bool]:
        """Execute one action; the observation, and whether the episode is over.

        Raises:
            LatentGymError: if the environment breaks its contract.
        """
        self._beat()
        observation, reward, terminated, truncated, info = self.env.step(action)
        if "is_success" not in info:
            raise LatentGymError(f"{self._setting.env_id}: info holds no 'is_success' after step {self._steps}")
        success = bool(info["is_success"])
        self._steps += 1
        self._reward += float(reward)
        if success and self._first_success is None:
            self._first_success = self._steps
        if self._setting.per_step:
            for name, value in (("action", _numbers(action)), ("reward", float(reward)), ("success", success)):
                self._trace[name].append(value)
        self._keep(observation)
        stops = self._setting.stop_at_success and self._first_success is not None
        return observation, bool(terminated or truncated or stops)

    def play(self, policy: Policy, seed: int, film: bool = False) -> EpisodeRecord:
        """Run a whole episode by a policy that acts on the simulator and serves this environment alone."""
        if self._bound is not self.env:
            policy.bind([self.env], self._setting.deliberate)
            self._bound = self.env
        observation, over = self.start(seed, film), False
        policy.reset(np.ones(1, np.bool_), [derive_seed(seed, "policy")])
        while not over:
            batch = {
                key: np.array([value], object if isinstance(value, str) else None) for key, value in observation.items()
            }
            place = [(seed, self._steps)]
            actions = checked_actions(
                policy.act(batch), (1, self.action_size), policy.name, self._setting.env_id, place
            )
            observation, over = self.step(actions[0])
        return self.record()

    @property
    def action_size(self) -> int:
        """Dimensions of an action."""
        return contract_of(self.env).action_spec.size

    def record(self) -> EpisodeRecord:
        """The record of the episode so far."""
        trace = None
        if self._setting.per_step:
            trace = StepTrace(**{name: tuple(values) for name, values in self._trace.items()})
        success = self._first_success is not None
        return EpisodeRecord(self._seed, success, self._steps, self._first_success, self._reward, None, trace)

    def take_film(self) -> Film | None:
        """The frames of the episode, if it was filmed, and an end to keeping them."""
        frames, self._film = self._film, None
        return None if frames is None else Film(frames, contract_of(self.env).control_hz)

    def discard(self) -> None:
        """Drop the environment after it has failed; the next episode gets another."""
        env, self._env, self._bound, self._film = self._env, None, None, None
        if env is not None:
            try:
                env.close()
            except Exception:  # what has failed may fail again
                return

    def close(self) -> None:
        """Close the environment."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def _keep(self, observation: Observation) -> None:
        if self._setting.per_step and "state" in observation:
            self._trace["state"].append(_numbers(observation["state"]))
        if self._film is not None:
            self._film.append(np.array(observation[contract_of(self.env).cameras[0]]))


@dataclasses.dataclass(frozen=True)
class Film:
    """Frames of an episode, until it is known whether they are wanted."""

    frames: list[NDArray[np.uint8]]
    fps: float

    def write(self, path: Path | None) -> None:
        """Write them as a video; nothing where ``path`` is ``None``."""
        if path is not None:
            write_video(path, self.frames, self.fps)


def checked_actions(
    actions: NDArray[np.float32], shape: tuple[int, int], policy: str, env_id: str, places: Sequence[tuple[int, int]]
) -> NDArray[np.float32]:
    """The leading ``actions``, which belong to the episodes of ``places`` (seed and step), if all are finite.

    Raises:
        LatentGymError: if their shape is not ``shape``, or one is not finite; names policy, environment, seed and step.
    """
    if np.shape(actions) != shape:
        raise LatentGymError(f"policy {policy!r} returned actions of shape {np.shape(actions)}, expected {shape}")
    used = np.asarray(actions[: len(places)])
    finite = np.isfinite(used).all(axis=1)
    if not finite.all():
        bad = int(np.flatnonzero(~finite)[0])
        seed, step = places[bad]
        raise LatentGymError(
            f"policy {policy!r} returned a NaN or infinite action in {env_id}, seed {seed}, step {step}: "
            f"{used[bad].tolist()}"
        )
    return used


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(np.asarray(values, np.float64).ravel().tolist())
