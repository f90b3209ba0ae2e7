"""Probe windows: which action belongs to which pair of observations, and the features of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from latentgym.errors import LatentGymError

if TYPE_CHECKING:
    from latentgym.trajectories.store import Dataset

Input = Literal["pair", "pair_difference", "difference", "single", "window"]
Actions = Mapping[int, tuple[NDArray[np.float64], NDArray[np.bool_]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """Windows of horizon k; row r sees observations t … t+k of its episode and predicts actions t … t+k−1.

    Attributes:
        k: horizon in steps.
        episode: ``(n,)`` int64, episode index, in runs.
        step: ``(n,)`` int64, t.
        mean: ``(n, A)`` float64, mean action over the window.
        first: ``(n, A)`` float64, action at t.
        random: ``(n,)`` bool, whether all k actions were drawn at random.
    """

    k: int
    episode: NDArray[np.int64]
    step: NDArray[np.int64]
    mean: NDArray[np.float64]
    first: NDArray[np.float64]
    random: NDArray[np.bool_]

    def __len__(self) -> int:
        """Number of windows, n."""
        return len(self.episode)

    def select(self, rows: slice | NDArray[np.bool_]) -> Windows:
        """The windows of some rows."""
        fields = (self.episode, self.step, self.mean, self.first, self.random)
        return Windows(self.k, *(field[rows] for field in fields))  # type: ignore[arg-type]

    def blocks(self, rows: int = 4096) -> Iterator[Windows]:
        """Whole episodes, about ``rows`` windows at a time."""
        starts = np.flatnonzero(np.diff(self.episode, prepend=-1))
        first = 0
        for stop in [*starts[1:].tolist(), len(self)]:
            if stop - first >= rows or stop == len(self):
                yield self.select(slice(first, stop))
                first = stop


def read_actions(dataset: Dataset, episodes: Sequence[int]) -> Actions:
    """Actions ``(T, A)`` and random-action marks ``(T,)`` of episodes; no frame is decoded."""
    actions = {}
    for index in episodes:
        episode = dataset.episode(index, cameras=())
        if not np.isfinite(episode.action).all():
            raise LatentGymError(f"episode {index} of {dataset.path}: NaN or infinite actions; record it again")
        actions[index] = (episode.action.astype(np.float64), episode.random_action)
    return actions


def cut_windows(actions: Actions, episodes: Sequence[int], k: int) -> Windows:
    """Every window of horizon ``k`` in ``episodes``; episodes of fewer than k steps give none.

    Raises:
        LatentGymError: if k is not positive, or no episode is long enough.
    """
    if k < 1:
        raise LatentGymError(f"horizon k: expected at least 1, found {k}")
    parts = []
    for index in episodes:
        action, random = actions[index]
        count = len(action) - k + 1
        if count > 0:
            sums = np.cumsum(np.concatenate([np.zeros((1, action.shape[1])), action]), axis=0)
            mean = (sums[k:] - sums[:-k]) / k if k > 1 else action
            drawn = np.lib.stride_tricks.sliding_window_view(random, k).all(axis=1)
            parts.append((np.full(count, index), np.arange(count), mean, action[:count], drawn))
    if not parts:
        longest = max((len(actions[index][0]) for index in episodes), default=0)
        raise LatentGymError(
            f"horizon k = {k}: none of {len(episodes)} episodes has that many steps (longest: {longest}); "
            "use a smaller horizon or record longer episodes"
        )
    return Windows(k, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def action_chunks(actions: Actions, windows: Windows) -> NDArray[np.float64]:
    """``(n, k · A)`` float64, the k actions of each window one after the other."""
    starts = np.flatnonzero(np.diff(windows.episode, prepend=-1))
    parts = []
    for start, stop in zip(starts, [*starts[1:], len(windows)], strict=True):
        action = actions[int(windows.episode[start])][0]
        chunks = np.lib.stride_tricks.sliding_window_view(action, windows.k, axis=0).swapaxes(1, 2)
        parts.append(chunks[windows.step[start:stop]].reshape(stop - start, -1))
    return np.concatenate(parts)


class StateRows:
    """The simulator's state as feature rows ``(T+1, S)``; no frame is decoded."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.dim = dataset.episode(0, cameras=()).state.shape[1]

    def episode(self, index: int) -> NDArray[np.float32]:
        """States of one episode."""
        return self._dataset.episode(index, cameras=()).state

    def at_start(self, windows: Windows) -> NDArray[np.float64]:
        """``(n, S)`` float64, the state at the first observation of each window."""
        return _gather(self, windows, 0).astype(np.float64)


class RowSource(Protocol):
    """Feature rows per episode; the cache's :class:`~latentgym.encoders.cache.Features` are one."""

    @property
    def dim(self) -> int:
        """Number of features F."""

    def episode(self, index: int) -> NDArray[np.float32]:
        """Features ``(n, F)`` of one episode."""


class WindowFeatures:
    """Feature rows of windows.

    Args:
        single: features of view ``single``, one row per observation.
        clip: features of view ``clip`` of the windows' horizon, one row per window; ``None`` if only ``"single"`` and
            ``"window"`` are wanted.
    """

    def __init__(self, single: RowSource, clip: RowSource | None = None) -> None:
        self.single, self.clip = single, clip

    def rows(self, windows: Windows, kind: Input, endpoints: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Features ``(n, ·)`` of ``windows``.

        Args:
            windows: n windows, in runs of one episode.
            kind: ``"pair"`` [z_t ; z_clip], ``"pair_difference"`` [z_t ; z_clip − z_t], ``"difference"`` z_clip − z_t,
                ``"single"`` z_t, or ``"window"`` [z_t ; … ; z_t+k].
            endpoints: ``(n,)`` for ``"pair"``, the row whose z_clip stands in each row: a control.

        Raises:
            LatentGymError: if an episode has fewer feature rows than observations, or both ends differ in width.
        """
        starts = _gather(self.single, windows, 0)
        if kind == "single":
            return starts
        if kind == "window":
            return np.concatenate([_gather(self.single, windows, shift) for shift in range(windows.k + 1)], axis=1)
        assert self.clip is not None
        ends = _gather(self.clip, windows, 0)
        if ends.shape != starts.shape:
            raise LatentGymError(
                f"features of one frame have {starts.shape[1]} columns and those of a clip {ends.shape[1]}; "
                "they belong to different encoders or poolings"
            )
        if kind in ("difference", "pair_difference"):
            ends = ends - starts
        if kind == "difference":
            return ends
        return np.concatenate([starts, ends if endpoints is None else ends[endpoints]], axis=1)


def _gather(features: RowSource, windows: Windows, shift: int) -> NDArray[np.float32]:
    starts = np.flatnonzero(np.diff(windows.episode, prepend=-1))
    rows = np.empty((len(windows), features.dim), dtype=np.float32)
    for start, stop in zip(starts, [*starts[1:], len(windows)], strict=True):
        episode = features.episode(int(windows.episode[start]))
        wanted = windows.step[start:stop] + shift
        if wanted[-1] >= len(episode):
            raise LatentGymError(
                f"features of episode {windows.episode[start]} have {len(episode)} rows, row {wanted[-1]} is wanted; "
                "they belong to another data set or horizon"
            )
        rows[start:stop] = episode[wanted]
    return rows
