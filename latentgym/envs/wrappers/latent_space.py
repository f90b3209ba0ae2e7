"""Batches of observations as latents: what the latent wrappers for one and for many environments share."""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latentgym.encoders.contract import Encoder
from latentgym.encoders.registry import load_encoder
from latentgym.encoders.streaming import LatentStream
from latentgym.envs.contract import EnvContract
from latentgym.errors import LatentGymError

GOAL_KEYS = ("achieved_goal", "desired_goal")
DEFAULT_CAMERA = "pixels"
_OPEN: weakref.WeakValueDictionary[tuple[Any, ...], Encoder] = weakref.WeakValueDictionary()


class LatentSpace(spaces.Box):
    """An unbounded float32 vector that says what made it.

    Attributes:
        identity: encoder, camera, history and environment, as JSON types. A learner that saves its observation space
            keeps it, so that the saved file says which latents it belongs to.
    """

    def __init__(self, size: int, identity: Mapping[str, Any]) -> None:
        super().__init__(-np.inf, np.inf, (size,), np.float32)
        self.identity = dict(identity)


class LatentGoalSpace(spaces.Dict):
    """A latent under ``"observation"`` beside ``"achieved_goal"`` and ``"desired_goal"``; ``identity`` as there."""

    def __init__(self, latent: LatentSpace, goals: Mapping[str, spaces.Space[Any]]) -> None:
        super().__init__({"observation": latent, **goals})
        self.identity = latent.identity


@dataclasses.dataclass(frozen=True)
class LatentSettings:
    """How observations become latents.

    Attributes:
        encoder: registered name, folder, hub id, or an encoder.
        camera: observation key of the frames; the contract's main camera, or ``"pixels"``, if ``None``.
        history: number of latents in an observation.
        keep: observation keys of vectors that are appended.
        pooling: see :func:`latentgym.encoders.features.pool`; the encoder's default if ``None``.
        device: device of the encoder, as :func:`latentgym.load_encoder` takes it.
    """

    encoder: str | Path | Encoder
    camera: str | None = None
    history: int = 1
    keep: Sequence[str] = ()
    pooling: str | None = None
    device: str = "auto"

    def arguments(self) -> dict[str, Any]:
        """The settings as a spec holds them: JSON types, save for an encoder that was given as an object."""
        arguments = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if isinstance(self.encoder, Path):
            arguments["encoder"] = str(self.encoder)
        return arguments | {"keep": list(self.keep)}


class ObservationEncoder:
    """Turns batches of observations into latents, with a history of them per row.

    Args:
        settings: how.
        space: observation space of one environment: a ``Dict``, or a ``Box`` of frames ``(H, W, 3)`` uint8.
        rows: number of environments B.
        contract: what the environment states of itself, if it does.
        env_id: its id, if it states nothing else.
        action_wrappers: names of the wrappers that change actions before they reach it.

    Raises:
        LatentGymError: if a setting is invalid, or the observations lack what is asked for.
    """

    def __init__(
        self,
        settings: LatentSettings,
        space: spaces.Space[Any],
        rows: int,
        contract: EnvContract | None = None,
        *,
        env_id: str | None = None,
        action_wrappers: Sequence[str] = (),
    ) -> None:
        if settings.history < 1:
            raise LatentGymError(f"latent observation: history must be at least 1, found {settings.history}")
        self.encoder = shared_encoder(settings.encoder, settings.device)
        self._camera = settings.camera or (contract.cameras[0] if contract and contract.cameras else DEFAULT_CAMERA)
        self._space, self._keep, self._rows = as_dict_space(space, self._camera), tuple(settings.keep), rows
        self._check_keys()
        self._stream = LatentStream(self.encoder, settings.pooling)
        self._history = np.zeros((rows, settings.history, self._width()), np.float32)
        goals = {key: self._space[key] for key in GOAL_KEYS if key in self._space.spaces}
        self.has_goals = len(goals) == len(GOAL_KEYS)
        identity = {
            "source": str(settings.encoder) if isinstance(settings.encoder, str | Path) else None,
            "goals": self.has_goals,
            "encoder": dataclasses.asdict(self.encoder.spec),
            "camera": self._camera,
            "history": settings.history,
            "keep": list(settings.keep),
            "pooling": settings.pooling,
            "env": None if contract is None else _environment(contract),
            "env_id": env_id if contract is None else contract.env_id,
            "action_wrappers": list(action_wrappers),
        }
        kept = sum(int(np.prod(self._space[key].shape or ())) for key in self._keep)
        self.size = self._history[0].size + kept
        """Numbers in an observation's latents and kept vectors."""
        latent = LatentSpace(self.size, identity)
        self.single_space: spaces.Space[Any] = LatentGoalSpace(latent, goals) if self.has_goals else latent

    def start(self, observation: Mapping[str, NDArray[Any]], mask: NDArray[np.bool_]) -> Any:
        """Latents where the rows of ``mask`` ``(B,)`` bool begin an episode and the others stand still."""
        self._stream.reset(mask)
        newest = self._stream.push(observation, self._camera, rows=mask)
        self._history[mask] = newest[mask, None]
        return self._assemble(observation)

    def push(self, observation: Mapping[str, NDArray[Any]], fresh: NDArray[np.bool_] | None = None) -> Any:
        """Latents ``(B, W)`` float32 after one more observation per row; a dict with the goals where there are any.

        Args:
            observation: one observation per row.
            fresh: ``(B,)`` bool, rows whose observation begins an episode.
        """
        if fresh is not None and fresh.any():
            self._stream.reset(fresh)
        newest = self._stream.push(observation, self._camera)
        self._history = np.concatenate([self._history[:, 1:], newest[:, None]], axis=1)
        if fresh is not None:
            self._history[fresh] = newest[fresh, None]
        return self._assemble(observation)

    def forget(self, mask: NDArray[np.bool_]) -> None:
        """The next observation of the rows of ``mask`` ``(B,)`` bool begins an episode."""
        self._stream.reset(mask)

    def advance(self, observation: Mapping[str, NDArray[Any]], rows: NDArray[np.intp], fresh: NDArray[np.bool_]) -> Any:
        """As :meth:`push`, for some of the rows; the others stand still.

        Args:
            observation: one observation for each of ``rows``.
            rows: ``(b,)`` row numbers, all different.
            fresh: ``(b,)`` bool, which of them begin an episode, as was said to :meth:`forget`.
        """
        newest = self._stream.advance(observation, rows, self._camera)
        history = np.concatenate([self._history[rows, 1:], newest[:, None]], axis=1)
        history[fresh] = newest[fresh, None]
        self._history[rows] = history
        return self._assemble(observation, history)

    def _assemble(self, observation: Mapping[str, NDArray[Any]], history: NDArray[np.float32] | None = None) -> Any:
        history = self._history if history is None else history
        count = len(history)
        parts = [history.reshape(count, -1)]
        parts += [np.asarray(observation[key], np.float32).reshape(count, -1) for key in self._keep]
        latents = np.concatenate(parts, axis=1)
        if not self.has_goals:
            return latents
        return {"observation": latents} | {key: np.asarray(observation[key]) for key in GOAL_KEYS}

    def _check_keys(self) -> None:
        modality = self.encoder.spec.modality
        key = self._camera if modality == "pixels" else modality
        found = ", ".join(self._space.spaces) or "nothing"
        for name in self._keep:
            if not isinstance(self._space.get(name), spaces.Box):
                raise LatentGymError(
                    f"latent observation: keep={list(self._keep)} names no vector {name!r} of: {found}"
                )
        box = self._space.get(key)
        if not isinstance(box, spaces.Box):
            advice = (
                "make the environment so that it observes frames (pixels=True) or renders them "
                "(render_mode='rgb_array'), or name another camera"
                if modality == "pixels"
                else "observe it, or choose an encoder of frames"
            )
            raise LatentGymError(
                f"latent observation: encoder {self.encoder.spec.name!r} needs the observation {key!r}, found {found}; "
                f"{advice}"
            )
        if modality == "pixels" and not holds_frames(box):
            raise LatentGymError(
                f"latent observation: {key!r} must hold (H, W, 3) uint8 frames, found {box.shape} {box.dtype}"
            )

    def _width(self) -> int:
        """Numbers in one latent, found by encoding a blank observation."""
        key = self._camera if self.encoder.spec.modality == "pixels" else self.encoder.spec.modality
        box = self._space[key]
        self._stream.reset(np.ones(1, np.bool_))
        return int(self._stream.push({key: np.zeros((1, *(box.shape or ())), box.dtype)}, self._camera).shape[1])


def holds_frames(space: spaces.Space[Any] | None) -> bool:
    """Whether ``space`` holds RGB frames, ``(H, W, 3)`` uint8."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[2] == 3


def as_dict_space(space: spaces.Space[Any], camera: str) -> spaces.Dict:
    """``space`` itself if it is a Dict; a lone Box under the name of the camera."""
    return space if isinstance(space, spaces.Dict) else spaces.Dict({camera: space})


def shared_encoder(source: str | Path | Encoder, device: str = "auto") -> Encoder:
    """An encoder that every wrapper of this process shares, opened once for as long as one of them is in use."""
    if isinstance(source, Encoder):
        _OPEN[id(source),] = source
        return source
    folder = Path(source).expanduser()
    changed = max((file.stat().st_mtime_ns for file in folder.iterdir()), default=0) if folder.is_dir() else 0
    key = (str(source), device, changed)
    encoder = _OPEN.get(key)
    if encoder is None:
        encoder = _OPEN[key] = load_encoder(source, device=device)
    return encoder


def encoder_in_use(spec: Mapping[str, Any]) -> Encoder | None:
    """The encoder of a wrapper of this process whose spec has these fields, if there is one."""
    wanted = json.dumps(spec, sort_keys=True)
    alike = (
        encoder for encoder in _OPEN.values() if json.dumps(dataclasses.asdict(encoder.spec), sort_keys=True) == wanted
    )
    return next(alike, None)


def _environment(contract: EnvContract) -> dict[str, Any]:
    return {
        "env_id": contract.env_id,
        "action_spec": dataclasses.asdict(contract.action_spec),
        "control_hz": contract.control_hz,
        "settings": dict(contract.settings),
    }
