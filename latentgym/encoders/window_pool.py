"""Windows of recorded episodes and their actions, for training an encoder by inverse dynamics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentgym.encoders.adapted import join
from latentgym.encoders.contract import Encoder
from latentgym.encoders.features import View, canonical_view, default_batch_size, window_indices
from latentgym.encoders.sliding_pool import SlidingPool
from latentgym.errors import LatentGymError
from latentgym.seeding import numpy_generator

if TYPE_CHECKING:
    from latentgym.trajectories.store import Dataset


# Number of the data set, and of the episode in it.
Entry = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class WindowBatch:
    """Windows o_t … o_t+k and what was done in them.

    Attributes:
        single: o_t alone; ``(B, L, H, W, 3)`` uint8 clips, or ``(B, T', P + N, D)`` float32 tokens.
        clip: o_t … o_t+k, likewise.
        target: ``(B, A)`` float32, mean action of the window, standardised over the training windows.
    """

    single: torch.Tensor
    clip: torch.Tensor
    target: torch.Tensor


class WindowPool:
    """Windows drawn uniformly from the training episodes in memory; see :class:`SlidingPool`.

    Args:
        encoder: says what a clip is; encodes them where ``tokens`` is true.
        data: pairs of a data set and the indices of its training episodes; those of fewer than ``k`` steps are left
            out.
        k: horizon in steps.
        tokens: whether to hold the encoder's tokens (each episode is encoded once) in place of frames.
        control: whether each episode's actions are those of another one, at the same step (modulo its length).
        camera: camera to read, the data set's first where ``None``.
        seed: seed of order, draws and permutation.
        steps: training steps in all.
        pool_bytes: bound on the frames or tokens held in memory.

    Raises:
        LatentGymError: if an episode or camera does not exist, no episode is long enough, the control has fewer than
            two episodes, an action is not finite, or no action changes.
    """

    def __init__(
        self,
        encoder: Encoder,
        data: Sequence[tuple[Dataset, Sequence[int]]],
        *,
        k: int,
        tokens: bool,
        control: bool,
        camera: str | None,
        seed: int,
        steps: int,
        pool_bytes: int,
    ) -> None:
        self.encoder, self.k, self.seed, self.tokens = encoder, k, seed, tokens
        self._data = [dataset for dataset, _ in data]
        self._cameras = [_camera(dataset, camera) for dataset in self._data]
        self.action_size = _action_size(self._data)
        _check_episodes(data)
        kept = sorted(
            (d, int(index))
            for d, (dataset, chosen) in enumerate(data)
            for index in chosen
            if dataset.lengths[index] >= k
        )
        if not kept:
            raise LatentGymError(
                f"{_paths(self._data)}: none of {sum(len(chosen) for _, chosen in data)} training episodes has {k} "
                "steps; use a smaller horizon"
            )
        self._targets = self._read_targets(kept, control)
        shape = self._item_shape(kept[0])
        longest = max(int(self._data[d].lengths[index]) for d, index in kept) + 1
        capacity = pool_bytes // (longest * int(np.prod(shape)) * (4 if tokens else 1))
        self._episodes = SlidingPool(kept, self._load, capacity=capacity, steps=steps, seed=seed)

    def batch(self, step: int, batch_size: int) -> WindowBatch:
        """The windows of a step, a function of the constructor's arguments and ``step`` alone."""
        episodes = self._episodes.at(step)
        ends = np.cumsum([len(self._targets[index]) for index in episodes])
        draws = numpy_generator(self.seed, "windows", step).integers(ends[-1], size=batch_size)
        which = np.searchsorted(ends, draws, side="right")
        starts = np.concatenate([[0], ends[:-1]])
        drawn = [(episodes[e], int(draw - starts[e])) for e, draw in zip(which, draws, strict=True)]
        single = np.stack([self._episodes.held[index][0][t] for index, t in drawn])
        clip = np.stack([self._episodes.held[index][1][t] for index, t in drawn])
        target = np.stack([self._targets[index][t] for index, t in drawn])
        if not self.tokens:
            frames = [self._episodes.held[index][2] for index, _ in drawn]
            single, clip = (
                np.stack([frame[row] for frame, row in zip(frames, rows, strict=True)]) for rows in (single, clip)
            )
        return WindowBatch(torch.from_numpy(single), torch.from_numpy(clip), torch.from_numpy(target))

    def _frames(self, entry: Entry) -> NDArray[np.uint8]:
        d, index = entry
        return self._data[d].episode(index, cameras=(self._cameras[d],)).frames[self._cameras[d]]

    def _load(self, entry: Entry) -> tuple[NDArray[Any], ...]:
        """What stands for o_t and for o_t … o_t+k of each window: token rows, or indices into the frames behind."""
        frames = self._frames(entry)
        view, length = View("clip", self.k), self.encoder.spec.clip_length
        if not self.tokens:
            return *(window_indices(len(frames), v, length) for v in (View("single"), view)), frames
        single = self._encode(frames[window_indices(len(frames), View("single"), length)])
        if canonical_view(view, self.encoder.spec) == (View("single"), self.k):
            return single, single[self.k :]
        return single, self._encode(frames[window_indices(len(frames), view, length)])

    def _encode(self, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        size = default_batch_size(self.encoder)
        parts = [join(self.encoder.encode(clips[i : i + size])).cpu().numpy() for i in range(0, len(clips), size)]
        return np.concatenate(parts)

    def _item_shape(self, entry: Entry) -> tuple[int, ...]:
        frames = self._frames(entry)[:1]
        if not self.tokens:
            return frames.shape
        rows = self._encode(frames[window_indices(1, View("single"), self.encoder.spec.clip_length)])
        return rows.shape if not self.encoder.spec.temporal else (2, *rows.shape)

    def _read_targets(self, episodes: Sequence[Entry], control: bool) -> dict[Entry, NDArray[np.float32]]:
        """Standardised mean action ``(n, A)`` of every window."""
        sums = {}
        for d, index in episodes:
            action = self._data[d].episode(index, cameras=()).action.astype(np.float64)
            if not np.isfinite(action).all():
                raise LatentGymError(f"episode {index} of {self._data[d].path}: NaN or infinite actions")
            running = np.cumsum(np.vstack([np.zeros((1, action.shape[1])), action]), axis=0)
            sums[d, index] = (running[self.k :] - running[: -self.k]) / self.k
        everything = np.concatenate([*sums.values()])
        mean, deviation = everything.mean(axis=0), everything.std(axis=0)
        if not (deviation > 1e-6).any():
            raise LatentGymError(f"{_paths(self._data)}: no action changes in the training episodes, nothing to learn")
        deviation = np.where(deviation > 1e-6, deviation, 1.0)
        scaled = {index: ((rows - mean) / deviation).astype(np.float32) for index, rows in sums.items()}
        return self._permuted(scaled) if control else scaled

    def _permuted(self, targets: dict[Entry, NDArray[np.float32]]) -> dict[Entry, NDArray[np.float32]]:
        """Give every episode the actions of the next one in a seeded circle, so that none keeps its own."""
        if len(targets) < 2:
            raise LatentGymError("the control permutes actions across episodes and needs at least two of them")
        circle = [list(targets)[i] for i in numpy_generator(self.seed, "permutation").permutation(len(targets))]
        others = dict(zip(circle, [*circle[1:], circle[0]], strict=True))
        return {
            index: targets[others[index]][np.arange(len(rows)) % len(targets[others[index]])]
            for index, rows in targets.items()
        }


def _paths(data: Sequence[Dataset]) -> str:
    return ", ".join(str(dataset.path) for dataset in data)


def _action_size(data: Sequence[Dataset]) -> int:
    sizes = sorted({dataset.action_spec.size for dataset in data})
    if len(sizes) != 1:
        raise LatentGymError(f"{_paths(data)}: expected one or more data sets of one action size, found sizes {sizes}")
    return sizes[0]


def _check_episodes(data: Sequence[tuple[Dataset, Sequence[int]]]) -> None:
    for dataset, episodes in data:
        absent = [index for index in episodes if not 0 <= index < len(dataset)]
        if absent:
            raise LatentGymError(f"{dataset.path} has no episode {absent[0]}; it has {len(dataset)} episodes")


def _camera(dataset: Dataset, camera: str | None) -> str:
    if not dataset.cameras or (camera is not None and camera not in dataset.cameras):
        raise LatentGymError(
            f"data set {dataset.path} has cameras {', '.join(dataset.cameras) or '(none)'}; "
            f"expected {camera or 'at least one'}"
        )
    return camera or dataset.cameras[0]
