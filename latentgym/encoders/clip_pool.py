"""Training clips from recordings larger than memory: a bounded pool of decoded episodes that slides over the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from latentgym.encoders.objectives import CLIP_FRAMES, Batch
from latentgym.encoders.sliding_pool import SlidingPool
from latentgym.encoders.trunk import IMAGE_SIZE
from latentgym.errors import LatentGymError
from latentgym.seeding import numpy_generator

if TYPE_CHECKING:
    from latentgym.trajectories.store import Dataset

POOL_BYTES = 512 * 2**20
_FRAME_BYTES = IMAGE_SIZE * IMAGE_SIZE * 3


def resize(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize ``(N, H, W, 3)`` uint8 to 64 × 64 (bilinear, antialiased, rounded)."""
    if frames.shape[1:3] == (IMAGE_SIZE, IMAGE_SIZE):
        return frames
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous().float()
    resized = torch.nn.functional.interpolate(pixels, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


class ClipPool:
    """Clips of consecutive frames, drawn uniformly from the episodes in memory.

    Episodes are held as :class:`~latentgym.encoders.sliding_pool.SlidingPool` says. What :meth:`batch` returns depends
    on the constructor's arguments and ``step`` alone: a resumed run sees the same clips.

    Args:
        data: pairs of a data set and the indices of its training episodes.
        seed: pretraining seed.
        steps: training steps in all.
        camera: camera to read; the data set's first where ``None``.
        actions: whether to load actions too.
        pool_bytes: bound on the decoded frames held in memory.

    Raises:
        LatentGymError: if an episode or camera does not exist, no episode is long enough, or actions of different sizes
            are mixed.
    """

    def __init__(
        self,
        data: Sequence[tuple[Dataset, Sequence[int]]],
        *,
        seed: int,
        steps: int,
        camera: str | None = None,
        actions: bool = False,
        pool_bytes: int = POOL_BYTES,
    ) -> None:
        self.seed, self.camera = seed, camera
        self._data = [dataset for dataset, _ in data]
        self._check_camera()
        _check_episodes(data)
        entries = [(d, int(i)) for d, (_, episodes) in enumerate(data) for i in episodes]
        lengths = [int(self._data[d].lengths[i]) + 1 for d, i in entries]
        kept = [entry for entry, length in zip(entries, lengths, strict=True) if length >= CLIP_FRAMES]
        if not kept:
            raise LatentGymError(
                f"pretraining needs episodes of at least {CLIP_FRAMES} frames; found {len(entries)} episodes"
                + (f", the longest of {max(lengths)} frames" if entries else "")
            )
        capacity = pool_bytes // (max(lengths) * _FRAME_BYTES)
        self._episodes = SlidingPool(kept, lambda entry: self._load(*entry), capacity=capacity, steps=steps, seed=seed)
        self.action_size = 0
        if actions:
            self._measure_actions()

    def batch(self, step: int, batch_size: int, device: torch.device | str = "cpu") -> Batch:
        """The clips of a step on ``device``: ``batch_size`` rows of four frames, normalised there."""
        window = self._episodes.at(step)
        rng = numpy_generator(self.seed, "clips", step)
        starts = np.array([len(self._episodes.held[entry][0]) - CLIP_FRAMES + 1 for entry in window])
        ends = np.cumsum(starts)
        draws = rng.integers(ends[-1], size=batch_size)
        rows = np.searchsorted(ends, draws, side="right")
        begins = draws - (ends[rows] - starts[rows])
        held = [(self._episodes.held[window[row]], begin) for row, begin in zip(rows, begins, strict=True)]
        frames = torch.from_numpy(np.stack([episode[0][b : b + CLIP_FRAMES] for episode, b in held]))
        pixels = frames.to(device).permute(0, 1, 4, 2, 3).contiguous().float() / 127.5 - 1.0
        if not self.action_size:
            return Batch(pixels)
        actions = np.stack([episode[1][b : b + CLIP_FRAMES - 1] for episode, b in held])
        return Batch(pixels, torch.from_numpy((actions - self._mean) / self._deviation).to(device))

    def _load(self, index: int, number: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        dataset = self._data[index]
        camera = self.camera or dataset.cameras[0]
        episode = dataset.episode(number, cameras=(camera,))
        return resize(episode.frames[camera]), episode.action

    def _check_camera(self) -> None:
        for dataset in self._data:
            if not dataset.cameras or (self.camera is not None and self.camera not in dataset.cameras):
                raise LatentGymError(
                    f"data set {dataset.path} has cameras {', '.join(dataset.cameras) or '(none)'}; "
                    f"expected {self.camera or 'at least one'}"
                )

    def _measure_actions(self) -> None:
        """Mean and standard deviation of every action dimension over the training episodes."""
        sizes = {dataset.action_spec.size for dataset in self._data}
        if len(sizes) != 1:
            raise LatentGymError(
                f"training on actions needs data sets with one action size, found {sorted(sizes)}; "
                "train one encoder per action space"
            )
        actions = np.concatenate([self._data[d].episode(i, cameras=()).action for d, i in sorted(self._episodes.order)])
        if not np.isfinite(actions).all():
            raise LatentGymError("training on actions: a training episode holds NaN or infinite actions")
        self.action_size = sizes.pop()
        self._mean = actions.mean(axis=0, dtype=np.float64).astype(np.float32)
        deviation = actions.std(axis=0, dtype=np.float64).astype(np.float32)
        self._deviation = np.where(deviation > 1e-6, deviation, np.float32(1.0))


def _check_episodes(data: Sequence[tuple[Dataset, Sequence[int]]]) -> None:
    for dataset, episodes in data:
        absent = [int(i) for i in episodes if not 0 <= i < len(dataset)]
        if absent:
            raise LatentGymError(
                f"pretraining asks for episode {absent[0]} of {dataset.path}, which has {len(dataset)} episodes"
            )
