"""Collects the steps of one episode as they happen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from numpy.typing import NDArray

from latentgym.envs.contract import contract_of
from latentgym.errors import LatentGymError
from latentgym.trajectories.episode import Episode


class EpisodeBuilder:
    """Gathers an :class:`Episode` from ``env``, which has just been reset.

    Args:
        env: an environment that states a contract; its simulator state is kept where it grants one.
        observation: what ``reset`` returned.
        seed: what ``reset`` was called with.
        policy: name of the behaviour policy.

    Raises:
        LatentGymError: if ``env`` states no contract.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], observation: Mapping[str, NDArray[Any]], *, seed: int, policy: str
    ) -> None:
        self._env, self._contract = env, contract_of(env)
        self._seed, self._policy = seed, policy
        self._has_sim_state = env.has_wrapper_attr("sim_state")
        self._observations: list[dict[str, NDArray[Any]]] = []
        self._sim_states: list[NDArray[np.float64]] = []
        self._steps: list[tuple[NDArray[np.float32], NDArray[np.float32] | None, bool, float, bool, bool, bool]] = []
        self._observe(observation)

    def add(
        self,
        action: NDArray[np.float32],
        result: tuple[Mapping[str, NDArray[Any]], SupportsFloat, bool, bool, dict[str, Any]],
        *,
        expert_action: NDArray[np.float32] | None = None,
        random: bool = False,
    ) -> None:
        """Add one step.

        Args:
            action: ``(A,)`` as executed.
            result: what ``env.step(action)`` returned.
            expert_action: ``(A,)`` that the expert would have taken; in every step or in none.
            random: whether the action is no function of the state.

        Raises:
            LatentGymError: if the info lacks a boolean ``is_success``.
        """
        observation, reward, terminated, truncated, info = result
        success = info.get("is_success")
        if not isinstance(success, bool | np.bool_):
            raise LatentGymError(
                f"{self._contract.env_id}: info['is_success'] must be a boolean in every step, found {success!r}"
            )
        self._steps.append(
            (
                np.array(action, np.float32),
                None if expert_action is None else np.array(expert_action, np.float32),
                random,
                float(reward),
                bool(terminated),
                bool(truncated),
                bool(success),
            )
        )
        self._observe(observation)

    def build(self) -> Episode:
        """The episode so far.

        Raises:
            LatentGymError: if no step was added, or only some steps have an expert's action.
        """
        if not self._steps:
            raise LatentGymError(f"{self._contract.env_id}: an episode needs at least one step")
        actions, labels, random, reward, terminated, truncated, success = zip(*self._steps, strict=True)
        labelled = [label for label in labels if label is not None]
        if labelled and len(labelled) != len(actions):
            raise LatentGymError(
                f"{self._contract.env_id}: {len(labelled)} of {len(actions)} steps have an expert action; label every "
                "step of an episode or none"
            )
        return Episode(
            frames={camera: np.stack([row[camera] for row in self._observations]) for camera in self._contract.cameras},
            action=np.stack(actions),
            proprio=self._vectors("proprio"),
            state=self._vectors("state"),
            sim_state=np.stack(self._sim_states),
            reward=np.array(reward, np.float32),
            terminated=np.array(terminated, np.bool_),
            truncated=np.array(truncated, np.bool_),
            success=np.array(success, np.bool_),
            random_action=np.array(random, np.bool_),
            expert_action=np.stack(labelled) if labelled else None,
            seed=self._seed,
            policy=self._policy,
            env_id=self._contract.env_id,
            instruction=self._contract.instruction,
        )

    def _observe(self, observation: Mapping[str, NDArray[Any]]) -> None:
        self._observations.append({key: np.array(value) for key, value in observation.items()})
        state = self._env.get_wrapper_attr("sim_state")() if self._has_sim_state else np.zeros(0)
        self._sim_states.append(np.array(state, np.float64))

    def _vectors(self, key: str) -> NDArray[np.float32]:
        rows = [row.get(key, np.zeros(0)) for row in self._observations]
        vectors: NDArray[np.float32] = np.stack(rows).astype(np.float32)
        return vectors
