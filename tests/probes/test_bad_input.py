"""Bad data end in one clear error or in documented behaviour, never in a silent NaN."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentgym.encoders import Encoder, EncoderSpec, FeatureCache, Latents
from latentgym.errors import LatentGymError
from latentgym.probes import MLPProbe, ProbeResult, RidgeProbe, probe
from latentgym.trajectories import Dataset
from latentgym.trajectories.splits import Split

FAST: dict[str, Any] = {"readouts": ("ridge",), "horizons": (1,), "controls": (), "replicates": 20}


class Odd(Encoder):
    """The state, made odd in one way."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor], name: str) -> None:
        self.change = change
        self.spec = EncoderSpec(name=name, family="test", modality="state", image_size=0)

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        return Latents(self.change(clip)[:, :, None], torch.arange(clip.shape[1]), layer)


def finite(result: ProbeResult) -> None:
    for row in result.rows:
        assert all(value is None or np.isfinite(value) for value in (row.value, row.low, row.high)), row


def macro(result: ProbeResult) -> float:
    (row,) = [r for r in result.rows if (r.metric, r.input, r.subset, r.dimension) == (
        "action_r2", "pair", "all", "macro")]  # fmt: skip
    assert row.value is not None
    return row.value


def test_one_training_episode_or_fewer_than_folds(points: Dataset, tmp_path: Path) -> None:
    for train in ((0,), (0, 1, 2)):
        with pytest.raises(LatentGymError, match="at least 5 groups"):
            probe(points, "state", split=Split(train, (10,), (20, 21)), cache=FeatureCache(tmp_path), **FAST)
    few = probe(points, "state", split=Split((0, 1, 2), (10,), (20, 21)), folds=3, cache=FeatureCache(tmp_path), **FAST)
    assert macro(few) > 0.99
    x = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(LatentGymError, match="at least 5 groups"):
        RidgeProbe().fit(x, x, np.zeros(20, int))
    with pytest.raises(LatentGymError, match="at least 2 groups"):
        MLPProbe(steps=1).fit(x, x, np.zeros(20, int))


def test_one_test_episode_has_a_value_and_a_degenerate_interval(points: Dataset, tmp_path: Path) -> None:
    result = probe(points, "state", split=Split(tuple(range(20)), (20,), (21,)), cache=FeatureCache(tmp_path), **FAST)
    finite(result)
    row = next(r for r in result.rows if r.metric == "action_r2" and r.dimension == "macro" and r.subset == "all")
    assert row.n == 1 and row.low == row.high == pytest.approx(row.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite(points: Dataset, tmp_path: Path, value: float) -> None:
    encoder = Odd(lambda x: x + value, "broken")
    with pytest.raises(LatentGymError, match="NaN or infinite latents"):
        probe(points, encoder, cache=FeatureCache(tmp_path), **FAST)


def test_float16_overflow_is_named(points: Dataset, tmp_path: Path) -> None:
    encoder = Odd(lambda x: (x * 1e6).half().float(), "overflowing")
    with pytest.raises(LatentGymError, match="float32"):
        probe(points, encoder, cache=FeatureCache(tmp_path), **FAST)


def test_features_without_variance_get_no_weight(points: Dataset, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    plain = macro(probe(points, "state", cache=cache, **FAST))
    padded = probe(points, Odd(lambda x: torch.cat([x, torch.full_like(x, 3.7)], -1), "padded"), cache=cache, **FAST)
    assert macro(padded) == pytest.approx(plain, abs=1e-6)
    blank = probe(points, Odd(torch.zeros_like, "blank"), cache=cache, **FAST)
    finite(blank)
    assert abs(macro(blank)) < 0.1, "what says nothing predicts the mean"
    trained = {**FAST, "readouts": ("ridge", "mlp")}
    finite(probe(points, Odd(torch.zeros_like, "blank"), cache=cache, mlp_steps=3, mlp_seeds=1, **trained))


def test_huge_and_tiny_latents_are_read_alike(points: Dataset, tmp_path: Path) -> None:
    for scale in (1e-12, 1e12):
        result = probe(points, Odd(lambda x, s=scale: x * s, f"scale-{scale}"), cache=FeatureCache(tmp_path), **FAST)  # type: ignore[misc]
        assert macro(result) > 0.99


def test_every_action_dimension_constant(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = make_dataset((8,) * 12, constant_grip=True)
    result = probe(dataset, "state", cache=FeatureCache(tmp_path), **FAST)
    finite(result)
    assert result.constant_dimensions == ("grip",)
    accuracy = [row for row in result.rows if row.metric == "balanced_accuracy"]
    assert accuracy and all(row.value is None for row in accuracy)


def test_horizons_longer_than_some_or_all_episodes(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = make_dataset((9, 3) * 12)
    result = probe(dataset, "state", cache=FeatureCache(tmp_path), **{**FAST, "horizons": (1, 8)})
    finite(result)
    with pytest.raises(LatentGymError, match="horizon k = 10"):
        probe(dataset, "state", cache=FeatureCache(tmp_path), **{**FAST, "horizons": (10,)})
    with pytest.raises(LatentGymError, match="horizon k: expected at least 1"):
        probe(dataset, "state", cache=FeatureCache(tmp_path), **{**FAST, "horizons": (0,)})


def test_feature_files_of_other_data_are_refused(
    points: Dataset, make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    """Features are found by what determines them; files swapped by hand are noticed by their shape or their hash."""
    cache = FeatureCache(tmp_path)
    probe(points, "state", cache=cache, **FAST)
    other = make_dataset((7,) * 30)
    probe(other, "state", cache=cache, **FAST)
    shards = sorted(tmp_path.glob("*/*.safetensors"), key=lambda path: path.stat().st_size)
    shards[-1].write_bytes(shards[0].read_bytes())
    with pytest.warns(RuntimeWarning, match="damaged"):
        again = probe(points, "state", cache=FeatureCache(tmp_path), **FAST)
    assert macro(again) > 0.99


def test_an_episode_of_no_use_to_the_split_is_named(points: Dataset, tmp_path: Path) -> None:
    broken = dataclasses.replace(Split((0,), (1,), (2,)), test=(99,))
    with pytest.raises(LatentGymError, match="99"):
        probe(points, "state", split=broken, cache=FeatureCache(tmp_path), **FAST)
