"""Causal features in closed loop, for a batch of environments at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.encoders.contract import Encoder
from latentgym.encoders.features import View, canonical_view, encode_clips
from latentgym.errors import LatentGymError


class LatentStream:
    """Encodes one new observation per environment and step, equal to the ``causal`` view of the episode so far.

    Row i always serves environment i. By default every row is encoded at every step, so that batches keep one size and
    a row's features do not depend on which other environments are still running; :meth:`advance` encodes some of the
    rows, and leaves it to the caller to name the same number each time. An encoder that uses one distinct frame encodes
    the new frame only.

    Args:
        encoder: the encoder.
        pooling: see :func:`latentgym.encoders.features.pool`; the encoder's default if left out.
        batch_size: clips per batch; all rows at once if left out. With the batch size that a data set was encoded
            with, features are equal to the last bit.
    """

    def __init__(self, encoder: Encoder, pooling: str | None = None, *, batch_size: int | None = None) -> None:
        self.encoder = encoder
        self.pooling = pooling
        self.batch_size = batch_size
        self._view, _ = canonical_view(View("causal"), encoder.spec)
        self._started: NDArray[np.bool_] | None = None
        self._history: NDArray[Any] | None = None

    def reset(self, mask: NDArray[np.bool_]) -> None:
        """Forget the history of the rows where ``mask`` ``(B,)`` bool is true.

        Raises:
            LatentGymError: if the number of rows changes while some are running.
        """
        mask = np.asarray(mask, dtype=bool)
        if self._started is None or (mask.all() and len(mask) != len(self._started)):
            self._started, self._history = np.zeros(len(mask), dtype=bool), None
        elif len(mask) != len(self._started):
            raise LatentGymError(f"latent stream of {len(self._started)} rows: reset was given {len(mask)}")
        else:
            self._started[mask] = False

    def push(
        self,
        observation: Mapping[str, NDArray[Any]],
        camera: str = "pixels",
        *,
        rows: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        """Features ``(B, F)`` float32 after the new observation.

        Args:
            observation: batched observation; the entry ``camera`` ``(B, H, W, 3)`` uint8 is read by pixel encoders,
                ``"proprio"`` or ``"state"`` ``(B, P)`` by vector encoders.
            camera: key of the camera.
            rows: ``(B,)`` bool, which rows move on; the others keep their history, and their features are
                those of the last push. Every row by default.

        Raises:
            LatentGymError: before the first reset, or if the observation lacks the entry or has another shape.
        """
        newest = self._newest(observation, camera)
        if self._started is None:
            raise LatentGymError("latent stream: call reset with a mask of all rows before the first push")
        self._check_shape(newest, len(self._started), camera)
        return self._encode(self._remember(newest, rows))

    def advance(
        self, observation: Mapping[str, NDArray[Any]], rows: NDArray[np.intp], camera: str = "pixels"
    ) -> NDArray[np.float32]:
        """Features ``(b, F)`` float32 of some rows after one new observation each; the others stand still.

        Once it has returned for the first time, several threads may call it at once for different rows.

        Args:
            observation: as in :meth:`push`, with ``b`` entries.
            rows: ``(b,)`` the rows that they belong to, all different.
            camera: key of the camera.

        Raises:
            LatentGymError: as :meth:`push`.
        """
        newest = self._newest(observation, camera)
        if self._started is None:
            raise LatentGymError("latent stream: call reset with a mask of all rows before the first push")
        self._check_shape(newest, len(rows), camera)
        if self._history is None:
            self._history = np.zeros((len(self._started), self._kept, *newest.shape[1:]), newest.dtype)
        moved = np.concatenate([self._history[rows, 1:], newest[:, None]], axis=1)
        fresh = ~self._started[rows]
        moved[fresh] = newest[fresh, None]
        self._history[rows], self._started[rows] = moved, True
        return self._encode(moved)

    @property
    def _kept(self) -> int:
        return self.encoder.spec.clip_length if self.encoder.spec.temporal else 1

    def _encode(self, history: NDArray[Any]) -> NDArray[np.float32]:
        count, kept = history.shape[:2]
        length = self.encoder.spec.clip_length
        clips = history if kept == length else np.repeat(history, length, axis=1)
        batch_size = self.batch_size or count
        return encode_clips(self.encoder, clips, self._view, pooling=self.pooling, batch_size=batch_size)

    def _newest(self, observation: Mapping[str, NDArray[Any]], camera: str) -> NDArray[Any]:
        key = camera if self.encoder.spec.modality == "pixels" else self.encoder.spec.modality
        if key not in observation:
            raise LatentGymError(
                f"encoder {self.encoder.spec.name!r} reads observation[{key!r}], which is not there; "
                f"found {', '.join(sorted(observation))}"
            )
        return np.asarray(observation[key])

    def _check_shape(self, newest: NDArray[Any], count: int, camera: str) -> None:
        if self._history is not None and not self._started_any and newest.shape[1:] != self._history.shape[2:]:
            self._history = None  # nothing is remembered yet: other frames than before the last reset are welcome
        expected = (count, *(newest.shape[1:] if self._history is None else self._history.shape[2:]))
        if newest.shape != expected:
            key = camera if self.encoder.spec.modality == "pixels" else self.encoder.spec.modality
            raise LatentGymError(f"observation[{key!r}]: expected shape {expected}, found {newest.shape}")

    @property
    def _started_any(self) -> bool:
        return self._started is not None and bool(self._started.any())

    def _remember(self, newest: NDArray[Any], rows: NDArray[np.bool_] | None) -> NDArray[Any]:
        """History ``(B, kept, …)`` with ``newest`` last; a row's first observation fills all of it."""
        assert self._started is not None
        if self._history is None:
            self._history = np.repeat(newest[:, None], self._kept, axis=1)
        else:
            moved = np.concatenate([self._history[:, 1:], newest[:, None]], axis=1)
            fresh = ~self._started
            moved[fresh] = newest[fresh, None]
            if rows is not None:
                moved[~rows] = self._history[~rows]
            self._history = moved
        self._started |= np.ones_like(self._started) if rows is None else rows
        return self._history
