"""Record what happens in an environment, whoever acts in it."""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latentgym.envs.contract import contract_of
from latentgym.envs.episode_builder import EpisodeBuilder
from latentgym.envs.provenance import make_provenance
from latentgym.envs.wrappers.action_spec import checked_action, same_bounds
from latentgym.envs.wrappers.rebuilding import RebuiltFromSpec
from latentgym.errors import LatentGymError
from latentgym.seeding import derive_seed
from latentgym.trajectories.store import create_store


class RecordTrajectories(gymnasium.Wrapper[Any, Any, Any, Any], RebuiltFromSpec):
    """Writes every finished episode to a data set, which :func:`latentgym.open_dataset` opens at any time.

    An episode that is reset or closed before its end is dropped. Every episode is reset with a known seed: where the
    caller gives none, the n-th episode's is derived from ``seed`` and n. One wrapper at a time may write to a folder; a
    later one with equal settings appends to it.

    Args:
        env: an environment that states a contract, such as ``make_env`` makes.
        out: folder of the data set: new, empty, or begun by an equal wrapper.
        policy: name of whoever acts, recorded with every episode.
        seed: root seed of the seeds that the caller does not give.

    Raises:
        LatentGymError: if ``env`` states no contract, observes no ``Dict``, or takes other actions than the contract
            says, or if the folder holds something else.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], out: str | os.PathLike[str], *, policy: str = "policy", seed: int = 0
    ) -> None:
        RebuiltFromSpec.__init__(self, out=str(out), policy=policy, seed=seed)
        gymnasium.Wrapper.__init__(self, env)
        contract = contract_of(env)
        if not isinstance(env.observation_space, spaces.Dict):
            raise LatentGymError(
                f"RecordTrajectories: expected a Dict of observations, found {env.observation_space}; record inside "
                "LatentObservation and other observation wrappers, not around them"
            )
        if not same_bounds(env.action_space, contract.action_spec):
            raise LatentGymError(
                f"RecordTrajectories: {contract.env_id} takes actions from {contract.action_spec.low} to "
                f"{contract.action_spec.high}, the wrapped environment {env.action_space}; record inside RescaleAction "
                "and other action wrappers, not around them"
            )
        self._policy, self._seed, self._env_id = policy, seed, contract.env_id
        call = f"RecordTrajectories({contract.env_id!r}, {str(out)!r}, policy={policy!r}, seed={seed})"
        self._store = create_store(
            out,
            env_id=contract.env_id,
            action_spec=contract.action_spec,
            cameras=contract.cameras,
            control_hz=contract.control_hz,
            horizon=contract.horizon,
            episodes=None,
            provenance=make_provenance(contract, seed=seed, call=call, settings={}),
            settings={**contract.settings, "suite": contract.suite},
        )
        self._index = 0
        self._builder: EpisodeBuilder | None = None
        self._expert_action: NDArray[np.float32] | None = None
        self._random = False

    def annotate(self, *, expert_action: NDArray[np.float32] | None = None, random: bool = False) -> None:
        """Say more about the next action: what the expert would do, ``(A,)``, and whether it is drawn at random."""
        self._expert_action, self._random = expert_action, random

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; one that has not ended is dropped."""
        while self._store.has(self._index):
            self._index += 1
        if seed is None:
            seed = derive_seed(self._seed, "episode", self._index)
        observation, info = self.env.reset(seed=seed, options=options)
        self._builder = EpisodeBuilder(self.env, observation, seed=seed, policy=self._policy)
        self.annotate()
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment; the episode's last step writes it.

        Raises:
            LatentGymError: if the action has the wrong shape or is not finite, if the episode cannot be written, or if
                another wrapper has written it meanwhile.
        """
        assert isinstance(self.env.action_space, spaces.Box)
        executed = checked_action(action, self.env.action_space, self._env_id)
        result = self.env.step(executed)
        if self._builder is not None:
            self._builder.add(executed, result, expert_action=self._expert_action, random=self._random)
            self.annotate()
            if result[2] or result[3]:
                episode, self._builder = self._builder.build(), None
                if self._store.has(self._index):
                    raise LatentGymError(
                        f"RecordTrajectories: episode {self._index} of {self._store.path} has been written by somebody "
                        "else since it began; give every environment a folder of its own"
                    )
                self._store.write(self._index, episode)
        return result
