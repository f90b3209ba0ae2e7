"""No frame and no episode may be on both sides of a split, whatever the readout sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from latentgym.encoders import FeatureCache
from latentgym.errors import LatentGymError
from latentgym.probes import probe, probe_layers, robustness
from latentgym.probes.windows import WindowFeatures, cut_windows, read_actions
from latentgym.trajectories import Dataset, split_episodes
from latentgym.trajectories.splits import Split


def frames_of(windows: Any) -> set[tuple[int, int]]:
    """Every observation that a window's features may see."""
    return {
        (int(episode), int(step) + shift)
        for episode, step in zip(windows.episode, windows.step, strict=True)
        for shift in range(windows.k + 1)
    }


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 2, 4, 8]))
def test_windows_of_two_parts_share_no_frame(seed: int, k: int) -> None:
    class Recorded:
        policies = ("expert",) * 12 + ("random",) * 8
        seeds = tuple(range(20))
        groups = tuple(map(str, range(20)))
        held_out = (False,) * 20

    split = split_episodes(Recorded(), seed=seed)
    actions = {index: (np.zeros((9, 2)), np.zeros(9, bool)) for index in range(20)}
    seen = [frames_of(cut_windows(actions, part, k)) for part in (split.train, split.validation, split.test)]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_an_episode_in_two_parts_is_refused() -> None:
    with pytest.raises(LatentGymError, match="one part only"):
        Split((0, 1), (2,), (1, 3))


@pytest.mark.parametrize("run", ["probe", "layers", "robustness"])
def test_readouts_are_fitted_without_a_test_frame(
    run: str, points: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is fitted reads training and validation episodes; test episodes are read by predictions alone."""
    split = split_episodes(points)
    fitted: set[int] = set()
    from latentgym.probes import members, ridge

    reading: list[NDArray[np.int64]] = []
    rows = WindowFeatures.rows

    def spy(self: WindowFeatures, windows: Any, *args: Any) -> Any:
        reading.append(np.unique(windows.episode))
        return rows(self, windows, *args)

    def fitting(original: Callable[..., Any]) -> Callable[..., Any]:
        def fit(self: Any, *args: Any, **options: Any) -> Any:
            for read in reading:
                fitted.update(read.tolist())
            reading.clear()
            return original(self, *args, **options)

        return fit

    def predicting(original: Callable[..., Any]) -> Callable[..., Any]:
        def predict(self: Any, *args: Any) -> Any:
            reading.clear()
            return original(self, *args)

        return predict

    monkeypatch.setattr(WindowFeatures, "rows", spy)
    for owner, fits, predicts in (
        (ridge.RidgeProbe, "partial_fit", "predict"),
        (members.MemberProbe, "fit", "predict_members"),
    ):
        monkeypatch.setattr(owner, fits, fitting(getattr(owner, fits)))
        monkeypatch.setattr(owner, predicts, predicting(getattr(owner, predicts)))
    settings_: dict[str, Any] = {"cache": FeatureCache(tmp_path), "replicates": 5, "split": split}
    if run == "probe":
        probe(points, "state", mlp_steps=2, mlp_seeds=1, controls=(), description_length=True, **settings_)
    elif run == "layers":
        probe_layers(points, "state", **settings_)
    else:
        robustness(points, "pixels", conditions=("blur_11",), readouts=("ridge", "mlp"), mlp_steps=2, **settings_)
    assert fitted and not fitted & set(split.test)
    assert set(split.train) <= fitted


def test_scores_of_test_episodes_do_not_depend_on_their_neighbours(points: Dataset, tmp_path: Path) -> None:
    """Normalisation and penalty come from training alone: another test set leaves the readout as it is."""
    split = split_episodes(points)
    cache = FeatureCache(tmp_path)
    fewer = Split(split.train, split.validation, split.test[:3])
    penalties = [
        probe(points, "state", split=one, readouts=("ridge",), controls=(), cache=cache, replicates=5).lambdas
        for one in (split, fewer)
    ]
    assert penalties[0] == penalties[1]
    assert read_actions(points, split.test).keys() == set(split.test)
