"""What a probe must beat or is compared with, without looking at a latent: constant, previous action, pixels' PCA."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latentgym.errors import LatentGymError
from latentgym.probes.report import ProbeResult, Scorer
from latentgym.probes.ridge import DEFAULT_LAMBDAS, RidgeProbe
from latentgym.probes.windows import Actions, WindowFeatures, Windows, cut_windows, read_actions
from latentgym.results import Row
from latentgym.trajectories.splits import split_episodes

if TYPE_CHECKING:
    from latentgym.encoders.cache import FeatureCache, Features
    from latentgym.trajectories.splits import Split
    from latentgym.trajectories.store import Dataset

# The constant is a floor; the previous action is privileged knowledge, so a reference that nothing need beat.
FLOORS = {"constant": "floor", "previous_action": "reference"}
# These read frames, and are scored on request.
FITTED_FLOORS = {"pixel_pca": "floor"}
PCA_COMPONENTS = 64


def probe_floors(
    dataset: Dataset, *, split: Split | None = None, horizons: Sequence[int] = (1, 4), replicates: int = 1000
) -> list[Row]:
    """Rows of every predictor in `FLOORS`, under its name as encoder; arguments as in :func:`latentgym.probe`."""
    return [
        row
        for name in FLOORS
        for row in probe_floor(dataset, name, split=split, horizons=horizons, replicates=replicates).rows
    ]


def probe_floor(
    dataset: Dataset,
    name: str,
    *,
    split: Split | None = None,
    horizons: Sequence[int] = (1, 4),
    replicates: int = 1000,
    folds: int = 5,
    cache: FeatureCache | None = None,
) -> ProbeResult:
    """Score one predictor on the test windows, on the resamples that encoders are scored on.

    Args:
        dataset: the data set.
        name: ``"constant"``, the mean action of the training windows; ``"previous_action"``, ridge regression on the
            action before the window (zero at the start of an episode); or ``"pixel_pca"``, ridge regression on both
            frames' scores on the first 64 principal components of 16 × 16 training frames.
        split: episodes of each part; :func:`split_episodes` by default.
        horizons: horizons k.
        replicates: number of bootstrap resamples.
        folds: folds that choose the ridge penalty.
        cache: where ``"pixel_pca"`` keeps its frames; it is needed for that one.
    """
    split = split or split_episodes(dataset)
    actions = read_actions(dataset, (*split.train, *split.test))
    identity = {"env": dataset.env_id, "encoder": name, "family": {**FLOORS, **FITTED_FLOORS}[name]}
    components = _principal_components(dataset, split, cache) if name in FITTED_FLOORS else None
    scorer = Scorer(identity, dataset.action_spec, dataset.key, replicates)
    for k in horizons:
        train, test = cut_windows(actions, split.train, k), cut_windows(actions, split.test, k)
        if name == "constant":
            prediction = np.broadcast_to(train.mean.mean(0), test.mean.shape)
        else:
            readout = RidgeProbe(DEFAULT_LAMBDAS, folds=folds)
            rows = components.pairs if components else functools.partial(_previous, actions)
            readout.fit(rows(train), train.mean, train.episode)
            prediction = readout.predict(rows(test))
        found = scorer.add(test, prediction, readout="ridge", input="pair")
        scorer.aliases({"pair": found}, "ridge", k)
    return scorer.result


class _Components:
    """Frames as scores on principal components ``(D, C)``."""

    def __init__(self, frames: Features, axes: NDArray[np.float64]) -> None:
        self.frames, self.axes = frames, axes.astype(np.float32)
        self.dim = axes.shape[1]

    def episode(self, index: int) -> NDArray[np.float32]:
        """Scores ``(n, C)`` of one episode's frames."""
        return self.frames.episode(index) @ self.axes

    def pairs(self, windows: Windows) -> NDArray[np.float64]:
        """Scores ``(n, 2C)`` of the first and last frame of each window."""
        ends = dataclasses.replace(windows, step=windows.step + windows.k)
        rows = WindowFeatures(self)
        return np.concatenate([rows.rows(at, "single") for at in (windows, ends)], axis=1).astype(np.float64)


def _principal_components(dataset: Dataset, split: Split, cache: FeatureCache | None) -> _Components:
    """The components of the training frames with the largest variance, from one pass over them."""
    from latentgym.encoders.features import View
    from latentgym.encoders.registry import load_encoder

    if cache is None:
        raise LatentGymError("the floor 'pixel_pca' encodes frames: pass cache=FeatureCache(folder)")
    frames = cache.get(dataset, load_encoder("pixels", device="cpu"), View("single"))
    count, total, products = 0, np.zeros(frames.dim), np.zeros((frames.dim, frames.dim))
    for index in split.train:
        rows = frames.episode(index).astype(np.float64)
        count, total = count + len(rows), total + rows.sum(0)
        products += rows.T @ rows
    covariance = products / count - np.outer(total, total) / count**2
    _, axes = np.linalg.eigh(covariance)
    return _Components(frames, axes[:, ::-1][:, :PCA_COMPONENTS])


def _previous(actions: Actions, windows: Windows) -> NDArray[np.float64]:
    """``(n, A)`` action before each window, zero at t = 0."""
    rows = zip(windows.episode.tolist(), windows.step.tolist(), strict=True)
    return np.stack([actions[i][0][t - 1] if t else np.zeros_like(actions[i][0][0]) for i, t in rows])
