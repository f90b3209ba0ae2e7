"""The reading interface that every data set has, whatever its format on disk."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.trajectories.episode import ActionSpec, Episode, Provenance


@dataclasses.dataclass
class CheckReport:
    """What reading a whole data set found.

    Attributes:
        problems: everything that is wrong; empty where the data are sound.
        notes: facts worth knowing before a number is believed.
    """

    problems: list[str]
    notes: list[str] = dataclasses.field(default_factory=list)


class Dataset(abc.ABC):
    """Recorded episodes, opened by :func:`latentgym.open_dataset`; they are read one by one, when asked for.

    Attributes:
        path: its folder.
        env_id: id of the environment.
        action_spec: meaning of the action's dimensions.
        cameras: names of the cameras, the main one first.
        extras: names of further arrays that can be read with an episode (depth, tactile …).
        control_hz: actions per second of simulated time.
        horizon: steps after which an episode is truncated.
        provenance: where the data came from.
        settings: whatever else determines the data (image size, render quality …).
        lengths: ``(N,)`` int64, number of actions T per episode.
        policies: behaviour policy per episode.
        seeds: reset seed per episode.
        successes: ``(N,)`` bool, whether each episode ever succeeded.
        groups: label per episode; episodes of one group were cut from one recording, so a split keeps them together.
        held_out: per episode, whether the data set's authors set it aside for testing.
    """

    path: Path
    env_id: str
    action_spec: ActionSpec
    cameras: tuple[str, ...]
    extras: tuple[str, ...]
    control_hz: float
    horizon: int
    provenance: Provenance
    settings: dict[str, Any]
    lengths: NDArray[np.int64]
    policies: tuple[str, ...]
    seeds: tuple[int, ...]
    successes: NDArray[np.bool_]
    groups: tuple[str, ...]
    held_out: tuple[bool, ...]

    @property
    @abc.abstractmethod
    def key(self) -> str:
        """Hash over what determines the data; equal for equal data."""

    @abc.abstractmethod
    def episode_key(self, index: int) -> str:
        """Hash of one episode's content."""

    @property
    def uniform_state(self) -> bool:
        """Whether :attr:`Episode.state` is equally wide everywhere; it may not be in data of several tasks."""
        return True

    @property
    def env_ids(self) -> tuple[str, ...]:
        """Ids of the environments that its episodes stand for, where they are more than :attr:`env_id` says."""
        return (self.env_id,)

    def observed_as(self, camera: str) -> str:
        """Observation key under which those environments show what ``camera`` shows."""
        return camera

    @abc.abstractmethod
    def _read(self, index: int, cameras: Sequence[str], extras: Sequence[str]) -> Episode:
        """Read an episode that exists, with cameras and extras that exist."""

    def episode(self, index: int, cameras: Sequence[str] | None = None, extras: Sequence[str] = ()) -> Episode:
        """Read one episode.

        Args:
            index: 0 … N - 1.
            cameras: cameras to decode; all by default, ``()`` for none.
            extras: further arrays to read, of :attr:`extras`; none by default.

        Raises:
            CorruptDataError: if a file is missing, truncated or altered.
            LatentGymError: if there is no such episode, camera or extra.
        """
        self._check_index(index)
        wanted = self.cameras if cameras is None else tuple(cameras)
        for kind, names, known in (("camera", wanted, self.cameras), ("extra", extras, self.extras)):
            for name in names:
                if name not in known:
                    raise UnknownNameError(kind, name, known)
        return self._read(index, wanted, tuple(extras))

    def __len__(self) -> int:
        """Number of episodes, N."""
        return len(self.lengths)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, env_id={self.env_id!r}, episodes={len(self)})"

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise LatentGymError(f"{self.path}: expected an episode index from 0 to {len(self) - 1}, found {index}")
