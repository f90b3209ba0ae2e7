"""Behaviour policies: who acts while trajectories are recorded, and what the expert would have done instead."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from latentgym.envs.contract import Expert, contract_of
from latentgym.envs.make import make_expert
from latentgym.errors import LatentGymError, UnknownNameError

Observation = dict[str, NDArray[Any]]
NOISE_LEVEL = 0.3
NOISE_CORRELATION_STEPS = 4.0
_RANDOM_LEVEL = 0.7
_RANDOM_CORRELATION_STEPS = (2.0, 8.0)
_INDEPENDENT_SHARE = 0.3


class Decision(NamedTuple):
    """What a behaviour does in one step.

    Attributes:
        action: ``(A,)`` float32, inside the action space: what is executed.
        expert_action: ``(A,)`` float32 that the expert would have taken, or ``None`` where there is no expert.
        random: whether ``action`` is no function of the state.
    """

    action: NDArray[np.float32]
    expert_action: NDArray[np.float32] | None
    random: bool


class SmoothNoise:
    """A stationary Ornstein–Uhlenbeck process sampled once per step (an AR(1) process).

    Args:
        level: standard deviation per dimension, ``(A,)``.
        correlation_steps: steps after which the autocorrelation has fallen to 1/e; 0 gives independent samples.
        rng: the source of randomness.
    """

    def __init__(self, level: NDArray[np.float64], correlation_steps: float, rng: np.random.Generator) -> None:
        self._level, self._rng = level, rng
        self._keep = np.exp(-1.0 / correlation_steps) if correlation_steps > 0 else 0.0
        self._value = rng.normal(size=level.shape)

    def sample(self) -> NDArray[np.float64]:
        """The value ``(A,)`` of the next step."""
        value = self._value
        fresh = self._rng.normal(size=value.shape)
        self._value = self._keep * value + np.sqrt(1.0 - self._keep**2) * fresh
        return value * self._level


class Behaviour(abc.ABC):
    """Acts in one environment at a time, made by :func:`make_behaviour`.

    Args:
        env: an environment that states a contract.
        expert: its expert, if it has one; it labels every step.
    """

    name: str

    def __init__(self, env: gymnasium.Env[Any, Any], expert: Expert | None) -> None:
        spec = contract_of(env).action_spec
        self._expert = expert
        self._low, self._high = np.array(spec.low, np.float64), np.array(spec.high, np.float64)
        self._half_range = (self._high - self._low) / 2
        self._gripper = list(spec.gripper)

    def reset(self, env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> None:
        """Prepare for the episode that ``env`` has just been reset to; all randomness comes from ``rng``."""
        if self._expert is not None:
            self._expert.reset(env, rng.spawn(1)[0])
        self._prepare(rng)

    def act(self, env: gymnasium.Env[Any, Any], observation: Observation) -> Decision:
        """Decide the next step from the current observation."""
        expert_action = None
        if self._expert is not None:
            expert_action = np.asarray(self._expert.act(env, observation), np.float32)
        action = np.clip(self._choose(expert_action), self._low, self._high).astype(np.float32)
        return Decision(action, expert_action, self.name == "random")

    @abc.abstractmethod
    def _prepare(self, rng: np.random.Generator) -> None:
        """Draw what the episode needs."""

    @abc.abstractmethod
    def _choose(self, expert_action: NDArray[np.float32] | None) -> NDArray[np.floating[Any]]:
        """The action before it is clipped."""


class ExpertBehaviour(Behaviour):
    """The expert itself."""

    name = "expert"

    def _prepare(self, rng: np.random.Generator) -> None:
        pass

    def _choose(self, expert_action: NDArray[np.float32] | None) -> NDArray[np.floating[Any]]:
        assert expert_action is not None
        return expert_action


class NoisyExpertBehaviour(Behaviour):
    """The expert plus smooth noise of 0.3 half-ranges on every dimension but the gripper's, clipped.

    The noise visits states that the clean expert never sees, with its corrections as labels (Laskey et al., DART,
    arXiv 1703.09327).
    """

    name = "noisy-expert"

    def _prepare(self, rng: np.random.Generator) -> None:
        level = NOISE_LEVEL * self._half_range
        level[self._gripper] = 0.0
        self._noise = SmoothNoise(level, NOISE_CORRELATION_STEPS, rng)

    def _choose(self, expert_action: NDArray[np.float32] | None) -> NDArray[np.floating[Any]]:
        assert expert_action is not None
        return expert_action + self._noise.sample()


class RandomBehaviour(Behaviour):
    """Random actions: smooth in most episodes, independent from step to step in three of ten.

    Smooth ones travel far; in independent ones the velocity tells nothing of the next action.
    """

    name = "random"

    def _prepare(self, rng: np.random.Generator) -> None:
        correlation_steps = 0.0 if rng.random() < _INDEPENDENT_SHARE else rng.uniform(*_RANDOM_CORRELATION_STEPS)
        self._noise = SmoothNoise(_RANDOM_LEVEL * self._half_range, correlation_steps, rng)

    def _choose(self, expert_action: NDArray[np.float32] | None) -> NDArray[np.floating[Any]]:
        return (self._low + self._high) / 2 + self._noise.sample()


BEHAVIOURS: dict[str, type[Behaviour]] = {
    behaviour.name: behaviour for behaviour in (ExpertBehaviour, NoisyExpertBehaviour, RandomBehaviour)
}


def make_behaviour(policy: str, env: gymnasium.Env[Any, Any], expert: Expert | None = None) -> Behaviour:
    """The behaviour ``"expert"``, ``"noisy-expert"`` or ``"random"`` for ``env``.

    Args:
        policy: its name.
        env: the environment.
        expert: takes the place of the environment's own expert.

    Raises:
        UnknownNameError: if there is no such behaviour.
        LatentGymError: if it needs an expert and ``env`` has none.
    """
    if policy not in BEHAVIOURS:
        raise UnknownNameError("behaviour policy", policy, BEHAVIOURS)
    if expert is None:
        try:
            expert = make_expert(env)
        except LatentGymError:
            if policy != "random":
                raise
    return BEHAVIOURS[policy](env, expert)
