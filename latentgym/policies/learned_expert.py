"""A trained policy as an environment's expert, where none is scripted or another one is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from latentgym.artifacts import content_key, file_digest
from latentgym.errors import LatentGymError
from latentgym.policies.checkpoint import CheckpointedPolicy, load_policy


class LearnedExpert:
    """Demonstrates with a saved policy, for example one that ``latentgym train-rl`` learned from rewards.

    Give it to :func:`latentgym.record` as ``expert``; the policy is opened in each process by itself.

    Args:
        place: folder that a policy was saved to, or a model file of Stable-Baselines3.

    Raises:
        LatentGymError: if there is nothing.
    """

    def __init__(self, place: str | Path) -> None:
        self.place = Path(place)
        if not self.place.exists():
            raise LatentGymError(f"there is no policy {place}; give a trained policy's folder, or a model file (.zip)")
        self.name = f"{self.place.name} ({self._digest()})"
        """What stands in the data set's provenance: the policy's name, and a digest of its files."""
        self._policy: CheckpointedPolicy | None = None
        self._env: gymnasium.Env[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The place alone; weights do not travel to other processes."""
        return {**self.__dict__, "_policy": None, "_env": None}

    def reset(self, env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> None:
        """Open the policy for the first episode of an environment, and forget the last episode.

        Raises:
            LatentGymError: if the policy cannot be opened or was trained for another environment.
        """
        if self._policy is None:
            self._policy = load_policy(self.place)
        if self._env is not env:
            self._policy.bind([env])
            self._env = env
        self._policy.reset(np.ones(1, np.bool_), [int(rng.integers(2**31))])

    def act(self, env: gymnasium.Env[Any, Any], observation: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The policy's action ``(A,)`` float32."""
        assert self._policy is not None
        actions = self._policy.act({key: np.asarray(value)[None] for key, value in observation.items()})
        return np.asarray(actions[0], np.float32)

    def _digest(self) -> str:
        if self.place.is_file():
            return content_key(file_digest(self.place))
        files = sorted(path for path in self.place.rglob("*") if path.is_file())
        return content_key([(str(path.relative_to(self.place)), file_digest(path)) for path in files])
