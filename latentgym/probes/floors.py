"""What a probe must beat or is compared with, without looking at a latent: the constant and the previous action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latentgym.probes.report import ProbeResult, Scorer
from latentgym.probes.ridge import DEFAULT_LAMBDAS, RidgeProbe
from latentgym.probes.windows import Actions, Windows, cut_windows, read_actions
from latentgym.results import Row
from latentgym.trajectories.splits import split_episodes

if TYPE_CHECKING:
    from latentgym.trajectories.splits import Split
    from latentgym.trajectories.store import Dataset

# The constant is a floor; the previous action is privileged knowledge, so a reference that nothing need beat.
FLOORS = {"constant": "floor", "previous_action": "reference"}


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
) -> ProbeResult:
    """Score one predictor on the test windows, on the resamples that encoders are scored on.

    Args:
        dataset: the data set.
        name: ``"constant"``, the mean action of the training windows; or ``"previous_action"``, ridge regression on the
            action before the window (zero at the start of an episode).
        split: episodes of each part; :func:`split_episodes` by default.
        horizons: horizons k.
        replicates: number of bootstrap resamples.
        folds: folds that choose the ridge penalty.
    """
    split = split or split_episodes(dataset)
    actions = read_actions(dataset, (*split.train, *split.test))
    identity = {"env": dataset.env_id, "encoder": name, "family": FLOORS[name]}
    scorer = Scorer(identity, dataset.action_spec, dataset.key, replicates)
    for k in horizons:
        train, test = cut_windows(actions, split.train, k), cut_windows(actions, split.test, k)
        if name == "constant":
            prediction = np.broadcast_to(train.mean.mean(0), test.mean.shape)
        else:
            readout = RidgeProbe(DEFAULT_LAMBDAS, folds=folds)
            readout.fit(_previous(actions, train), train.mean, train.episode)
            prediction = readout.predict(_previous(actions, test))
        found = scorer.add(test, prediction, readout="ridge", input="pair")
        scorer.aliases({"pair": found}, "ridge", k)
    return scorer.result


def _previous(actions: Actions, windows: Windows) -> NDArray[np.float64]:
    """``(n, A)`` action before each window, zero at t = 0."""
    rows = zip(windows.episode.tolist(), windows.step.tolist(), strict=True)
    return np.stack([actions[i][0][t - 1] if t else np.zeros_like(actions[i][0][0]) for i, t in rows])
