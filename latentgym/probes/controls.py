"""Controls: the same probe on data where it must fail, and on a task that only memory can solve.

Shuffled actions and endpoints show what is left when the link between latents and actions is cut. Actions shifted in
time keep their marginal distribution and their smoothness, so what is left is slow context. The control task
(Hewitt & Liang, 2019) gives every kind of transition, as seen in raw pixels, a random action: a readout that scores
well on it is strong enough to memorise, and selectivity is the real score minus that one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latentgym.probes.windows import WindowFeatures, Windows
from latentgym.seeding import numpy_generator

if TYPE_CHECKING:
    from latentgym.encoders.cache import FeatureCache
    from latentgym.trajectories.store import Dataset

CONTROL_CLUSTERS = 64
CONTROL_PIXELS = 8
_LLOYD_STEPS = 10


def shuffled_actions(windows: Windows, seed: int) -> NDArray[np.float64]:
    """``(n, A)`` mean actions of ``windows``, permuted over all of them."""
    order = numpy_generator(seed, "shuffled-actions").permutation(len(windows))
    permuted: NDArray[np.float64] = windows.mean[order]
    return permuted


def time_shifted_actions(windows: Windows) -> NDArray[np.float64]:
    """``(n, A)`` mean actions of ``windows``, each episode's turned by half of its windows."""
    starts = np.flatnonzero(np.diff(windows.episode, prepend=-1))
    parts = np.split(windows.mean, starts[1:])
    return np.concatenate([np.roll(part, len(part) // 2, axis=0) for part in parts])


def shuffled_rows(windows: Windows, seed: int) -> NDArray[np.int64]:
    """``(n,)`` permutation that gives each window the endpoint of another."""
    return numpy_generator(seed, "shuffled-endpoints", int(windows.episode[0])).permutation(len(windows))


def control_actions(
    dataset: Dataset, train: Windows, test: Windows, cache: FeatureCache, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Control targets ``(n, A)`` of training and test windows: one random action per cluster of raw-pixel pairs.

    Clusters are fitted by k-means on the training windows' first and last frame, averaged to
    `CONTROL_PIXELS` × `CONTROL_PIXELS`; a cluster's action is that of a training window drawn at random.
    """
    from latentgym.encoders.features import View
    from latentgym.encoders.registry import load_encoder

    pixels = load_encoder("pixels", image_size=CONTROL_PIXELS, device="cpu")
    clip = cache.get(dataset, pixels, View("clip", train.k))
    features = WindowFeatures(cache.get(dataset, pixels, View("single")), clip)
    rng = numpy_generator(seed, "control-task", dataset.key)
    rows = features.rows(train, "pair")
    centres = _k_means(rows, min(CONTROL_CLUSTERS, len(rows)), rng)
    actions = train.mean[rng.integers(len(train), size=len(centres))]
    return actions[_nearest(rows, centres)], actions[_nearest(features.rows(test, "pair"), centres)]


def _k_means(rows: NDArray[np.float32], clusters: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Centres ``(clusters, F)`` by Lloyd's algorithm from distinct random rows; an empty cluster keeps its centre."""
    centres: NDArray[np.float32] = rows[rng.choice(len(rows), size=clusters, replace=False)]
    for _ in range(_LLOYD_STEPS):
        member = np.eye(clusters, dtype=np.float32)[_nearest(rows, centres)]
        counts = member.sum(0)[:, None]
        centres = np.where(counts > 0, member.T @ rows / np.maximum(counts, 1), centres).astype(np.float32)
    return centres


def _nearest(rows: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    distance = np.square(centres).sum(1) - 2 * rows @ centres.T
    nearest: NDArray[np.int64] = distance.argmin(axis=1)
    return nearest
