"""Corrupted frames in closed loop: what a policy meets when the camera is noisy, blurred or snowed upon."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latentgym.corruptions import Mode, checked_corruption, corrupt
from latentgym.envs.contract import EnvContract, contract_of
from latentgym.envs.wrappers.rebuilding import RebuiltFromSpec
from latentgym.errors import LatentGymError
from latentgym.seeding import derive_seed

_FRAME_DIMENSIONS = 3


class CorruptObservation(gymnasium.Wrapper[Any, Any, Any, Any], RebuiltFromSpec):
    """Corrupts every observed frame; states, rewards, success and ``render()`` stay as they are.

    What is drawn depends on ``seed``, on the seed that the episode was reset with and, in an episode that was reset
    without one, on how many came since. Equal reset seeds therefore give equal initial states *and* equal corruptions,
    so that policies and severities can be compared in pairs.

    Args:
        env: an environment with ``(H, W, 3)`` uint8 frames in its observation, or as its observation.
        name: one of :data:`latentgym.corruptions.CORRUPTIONS`, or ``"name:severity"`` such as ``"snow:3"``.
        severity: from 1, as :func:`latentgym.corruptions.corrupt` takes it; 3 by default, or the only one there is.
        seed: root seed of what is drawn.
        mode: ``"static"``, one draw per episode, as a stained lens; ``"per_frame"``, one per frame.

    Raises:
        UnknownNameError: if there is no such corruption.
        LatentGymError: if the severity is out of range, or nothing is observed that could be corrupted.

    Example:
        >>> from latentgym import make_env
        >>> env = CorruptObservation(make_env("latentgym/TabletopReach-v0"), "gaussian_noise", severity=5)
        >>> env.reset(seed=0)[0]["pixels"].std() > env.unwrapped.reset(seed=0)[0]["pixels"].std()
        True
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        name: str,
        severity: int | None = None,
        *,
        seed: int = 0,
        mode: Mode = "static",
    ) -> None:
        name, severity = checked_corruption(name, severity, mode)
        RebuiltFromSpec.__init__(self, name=name, severity=severity, seed=seed, mode=mode)
        gymnasium.Wrapper.__init__(self, env)
        self._name, self._severity, self._seed, self._mode = name, severity, seed, mode
        space = env.observation_space
        known = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        self._cameras = tuple(key for key, box in known.items() if _holds_frames(box))
        if not self._cameras:
            raise LatentGymError(
                f"corruption {name!r}: the observation of {env} holds no (H, W, 3) uint8 frames; make the environment "
                "with pixels=True and corrupt it before frames are encoded"
            )
        self._episode: tuple[int, int] = (0, 0)
        self._step = 0

    @property
    def contract(self) -> EnvContract:
        """The wrapped contract, with the corruption among its settings.

        Raises:
            AttributeError: if the wrapped environment states none.
        """
        try:
            contract = contract_of(self.env)
        except LatentGymError as error:
            raise AttributeError("contract") from error
        corruption = f"{self._name}:{self._severity}"
        return dataclasses.replace(contract, settings={**contract.settings, "corruption": corruption})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode with a corruption of its own."""
        root, count = self._episode
        self._episode = (root, count + 1) if seed is None else (seed, 0)
        self._step = 0
        observation, info = self.env.reset(seed=seed, options=options)
        return self._corrupted(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment and corrupt what it observes."""
        self._step += 1
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._corrupted(observation), reward, terminated, truncated, info

    def _corrupted(self, observation: Any) -> Any:
        if not isinstance(observation, Mapping):
            return self._frame(observation, "")
        return {key: self._frame(value, key) if key in self._cameras else value for key, value in observation.items()}

    def _frame(self, frame: NDArray[np.uint8], camera: str) -> NDArray[np.uint8]:
        root, count = self._episode
        step = self._step if self._mode == "per_frame" else 0
        seed = derive_seed(self._seed, "corrupt-observation", root, count, camera, step)
        clip = np.asarray(frame)[None, None]
        return np.asarray(corrupt(clip, self._name, self._severity, seed=seed)[0, 0])


def _holds_frames(box: spaces.Space[Any]) -> bool:
    return (
        isinstance(box, spaces.Box)
        and box.dtype == np.uint8
        and len(box.shape) == _FRAME_DIMENSIONS
        and box.shape[2] == 3
    )
