"""Latents in place of pixels, for one environment and for many."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from latentgym.encoders.contract import Encoder
from latentgym.envs.contract import EnvContract, contract_of
from latentgym.envs.wrappers.action_spec import action_wrappers
from latentgym.envs.wrappers.latent_space import (
    DEFAULT_CAMERA,
    LatentSettings,
    ObservationEncoder,
    as_dict_space,
    holds_frames,
)
from latentgym.envs.wrappers.rebuilding import RebuiltFromSpec
from latentgym.errors import LatentGymError


class LatentObservation(gymnasium.Wrapper[Any, Any, Any, Any], RebuiltFromSpec):
    """Observes a flat vector of frozen latents.

    The observation is ``(history · F + K,)`` float32: the latents of the last ``history`` observations, oldest first
    (an episode's first is repeated on the left), then the vectors of ``keep``. Encoders of clips see the episode's
    frames so far. The latents are those of the ``causal`` view, which cloning is trained on. A goal environment (a
    ``Dict`` with ``"achieved_goal"`` and ``"desired_goal"``) stays one: its ``"observation"`` becomes the latents.

    Frames come from the observation; where it holds none and no camera is named, from ``env.render()``.

    Args:
        env: any environment that observes or renders frames.
        encoder: registered name, folder or hub id (see :func:`latentgym.load_encoder`); by name the spec of the wrapped
            environment can be written as JSON. An encoder itself works too.
        camera: observation key of the frames; the main camera by default.
        history: number of latents that are observed.
        keep: observation keys of vectors that are observed beside them, such as ``["proprio"]``.
        pooling: ``"mean"``, ``"cls"``, ``"grid:G"``; the encoder's default if ``None``.
        device: device of the encoder.

    Raises:
        LatentGymError: if there are no frames, or an argument does not fit.

    Example:
        >>> from latentgym import make_env
        >>> env = LatentObservation(make_env("latentgym/TabletopReach-v0"), "pixels", history=2, keep=["proprio"])
        >>> observation, info = env.reset(seed=0)
        >>> observation.shape, observation.dtype
        ((1542,), dtype('float32'))
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        encoder: str | Path | Encoder,
        *,
        camera: str | None = None,
        history: int = 1,
        keep: Sequence[str] = (),
        pooling: str | None = None,
        device: str = "auto",
    ) -> None:
        settings = LatentSettings(encoder, camera, history, keep, pooling, device)
        RebuiltFromSpec.__init__(self, **settings.arguments())
        gymnasium.Wrapper.__init__(self, env)
        self._inner_contract = _contract_or_none(env)
        self._camera = camera or _main_camera(self._inner_contract, env.observation_space)
        settings = dataclasses.replace(settings, camera=self._camera)
        self._renders = camera is None and not _observes_frames(env.observation_space, self._camera)
        self._encoder = ObservationEncoder(
            settings,
            self._input_space(),
            1,
            self._inner_contract,
            env_id=None if env.spec is None else env.spec.id,
            action_wrappers=action_wrappers(env),
        )
        self.observation_space = self._encoder.single_space

    @property
    def encoder(self) -> Encoder:
        """The frozen encoder."""
        return self._encoder.encoder

    @property
    def contract(self) -> EnvContract:
        """The wrapped environment's contract, without cameras.

        Raises:
            AttributeError: if the wrapped environment states none.
        """
        if self._inner_contract is None:
            raise AttributeError("contract")
        return dataclasses.replace(self._inner_contract, cameras=())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, with no memory of the last one."""
        observation, info = self.env.reset(seed=seed, options=options)
        return _first(self._encoder.start(self._batched(observation), np.ones(1, np.bool_))), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment and encode what it observes."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return _first(self._encoder.push(self._batched(observation))), reward, terminated, truncated, info

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:
        """The reward of a goal environment for other goals, which hindsight asks for."""
        return self.env.get_wrapper_attr("compute_reward")(achieved_goal, desired_goal, info)

    def _batched(self, observation: Any) -> dict[str, NDArray[Any]]:
        found = dict(observation) if isinstance(observation, Mapping) else {}
        if self._renders:
            found[self._camera] = self.env.render()
        elif not isinstance(observation, Mapping):
            found[self._camera] = observation
        return {key: np.asarray(value)[None] for key, value in found.items()}

    def _input_space(self) -> spaces.Space[Any]:
        space = self.env.observation_space
        if not self._renders:
            return space
        known = dict(space.spaces) if isinstance(space, spaces.Dict) else {}
        if self.env.render_mode == "rgb_array":
            self.env.reset()  # nothing can be rendered before
            frame: Any = self.env.render()
            known[self._camera] = spaces.Box(0, 255, np.shape(frame), np.uint8)
        return spaces.Dict(known)


class VectorLatentObservation(VectorWrapper[Any, Any, Any, Any, Any]):
    """Observes latents of a whole vector of environments, encoded as one batch.

    Observations are ``(B, history · F + K)`` float32; row i is what :class:`LatentObservation` observes in environment
    i. Every autoreset mode of Gymnasium works: a row whose episode has ended begins the next one with an empty history,
    and with ``AutoresetMode.SAME_STEP`` the frames in ``info["final_obs"]`` become latents too.

    Args:
        env: vector environment with frames in its observations; with ``AsyncVectorEnv`` simulators run in workers
            (``context="spawn"`` or ``"forkserver"``, since GL contexts do not survive a fork) and only frames travel.
        encoder: as :class:`LatentObservation` takes it, like the other arguments.
        camera: observation key of the frames.
        history: number of latents that are observed.
        keep: observation keys of vectors that are observed beside them.
        pooling: how tokens become a vector.
        device: device of the encoder.

    Raises:
        LatentGymError: if there are no frames, or an argument does not fit.

    Example:
        >>> from gymnasium.vector import SyncVectorEnv
        >>> from latentgym import make_env
        >>> envs = SyncVectorEnv([lambda: make_env("latentgym/TabletopReach-v0")] * 3)
        >>> latents, _ = VectorLatentObservation(envs, "pixels").reset(seed=0)
        >>> latents.shape
        (3, 768)
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        encoder: str | Path | Encoder,
        *,
        camera: str | None = None,
        history: int = 1,
        keep: Sequence[str] = (),
        pooling: str | None = None,
        device: str = "auto",
    ) -> None:
        super().__init__(env)
        settings = LatentSettings(encoder, camera, history, keep, pooling, device)
        contract = _contract_of_rows(env)
        self._camera = camera or _main_camera(contract, env.single_observation_space)
        settings = dataclasses.replace(settings, camera=self._camera)
        self._encoder = ObservationEncoder(settings, env.single_observation_space, env.num_envs, contract)
        self.single_observation_space = self._encoder.single_space
        self.observation_space = batch_space(self._encoder.single_space, env.num_envs)
        self._mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self._ended = np.zeros(env.num_envs, np.bool_)

    @property
    def encoder(self) -> Encoder:
        """The frozen encoder."""
        return self._encoder.encoder

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start episodes in every row, or in those of ``options["reset_mask"]``."""
        chosen = (options or {}).get("reset_mask")
        mask = np.ones(self.num_envs, np.bool_) if chosen is None else np.array(chosen, np.bool_)
        observation, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self._ended = self._ended & ~mask
        return self._encoder.start(self._batched(observation), mask), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every environment and encode what they observe."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        batch, done = self._batched(observation), np.asarray(terminated | truncated, np.bool_)
        if self._mode == AutoresetMode.SAME_STEP and done.any():
            last = self._encoder.push(self._with_final(batch, info["final_obs"], done))
            info = info | {"final_obs": _final_latents(last, done)}
            latents = self._encoder.start(batch, done)
        else:
            latents = self._encoder.push(batch, self._ended)  # rows that ended have just been reset
        self._ended = done if self._mode == AutoresetMode.NEXT_STEP else np.zeros_like(done)
        return latents, reward, terminated, truncated, info

    def _batched(self, observation: Any) -> dict[str, NDArray[Any]]:
        found = observation if isinstance(observation, Mapping) else {self._camera: observation}
        return {key: np.asarray(value) for key, value in found.items()}

    def _with_final(
        self, batch: Mapping[str, NDArray[Any]], final: Sequence[Any], done: NDArray[np.bool_]
    ) -> dict[str, NDArray[Any]]:
        """``batch`` with the last observations of the episodes that have ended."""
        merged = {key: values.copy() for key, values in batch.items()}
        for row in np.flatnonzero(done):
            last = final[row] if isinstance(final[row], Mapping) else {self._camera: final[row]}
            for key, value in last.items():
                merged[key][row] = value
        return merged


def _first(latents: Any) -> Any:
    return {key: value[0] for key, value in latents.items()} if isinstance(latents, dict) else latents[0]


def _final_latents(latents: Any, done: NDArray[np.bool_]) -> NDArray[np.object_]:
    final = np.full(len(done), None, dtype=object)
    for row in np.flatnonzero(done):
        own = {key: value[row].copy() for key, value in latents.items()} if isinstance(latents, dict) else None
        final[row] = latents[row].copy() if own is None else own
    return final


def _main_camera(contract: EnvContract | None, space: spaces.Space[Any]) -> str:
    """The contract's main camera; without one ``"pixels"``, or the only observed frames if they have another name.

    Raises:
        LatentGymError: if there are several and none of them is called so.
    """
    if contract is not None:
        return contract.cameras[0] if contract.cameras else DEFAULT_CAMERA
    frames = [key for key, box in as_dict_space(space, DEFAULT_CAMERA).items() if holds_frames(box)]
    if DEFAULT_CAMERA in frames or not frames:
        return DEFAULT_CAMERA
    if len(frames) > 1:
        raise LatentGymError(
            f"latent observation: several cameras are observed, name one: camera={frames[0]!r} ({', '.join(frames)})"
        )
    return frames[0]


def _observes_frames(space: spaces.Space[Any], camera: str) -> bool:
    """Whether frames are observed; a Dict of the suite that leaves them out on purpose is not rendered either."""
    known = as_dict_space(space, camera)
    if holds_frames(known.get(camera)):
        return True
    return "proprio" in known.spaces and "state" in known.spaces


def _contract_or_none(env: gymnasium.Env[Any, Any]) -> EnvContract | None:
    try:
        return contract_of(env)
    except LatentGymError:
        return None


def _contract_of_rows(env: VectorEnv[Any, Any, Any]) -> EnvContract | None:
    """The contract that the environments of a vector state, if they do."""
    rows: Any = env.unwrapped
    # Gymnasium's workers end where an attribute is missing, so they are asked first.
    if not hasattr(rows, "call") or not all(rows.call("has_wrapper_attr", "contract")):
        return None
    contracts = rows.get_attr("contract")
    return contracts[0] if isinstance(contracts[0], EnvContract) else None
