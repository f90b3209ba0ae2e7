from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from latentgym.encoders import Encoder, EncoderSpec, FeatureCache, Latents, View, encode_view
from latentgym.encoders.features import default_batch_size, encode_episodes_layers
from latentgym.encoders.registry import at_layers, load_encoder
from latentgym.errors import LatentGymError
from latentgym.probes import probe, probe_layers, write_depth_profile
from latentgym.trajectories import Dataset


class Deep(Encoder):
    """Three blocks: noise, the state, the state's shadow; counts its passes."""

    def __init__(self) -> None:
        self.passes = [0]
        self.spec = EncoderSpec(name="deep", family="test", modality="state", image_size=0, layers=3)

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        return self.forward_layers(clip, (layer,))[0]

    def forward_layers(self, clip: torch.Tensor, layers: Sequence[int]) -> list[Latents]:
        self.passes[0] += 1
        noise = torch.sin(clip.double() * 1e4).float()
        blocks = [noise, clip, clip + 0.6 * noise]
        return [Latents(blocks[layer][:, :, None], torch.arange(clip.shape[1]), layer) for layer in layers]


def test_every_block_comes_from_one_pass(points: Dataset, tmp_path: Path) -> None:
    encoder = Deep()
    layers = at_layers(encoder, range(3))
    for layer in layers:  # learn the widths, which takes a pass each
        FeatureCache(tmp_path / "widths")._plan(points, layer, View("single"), None)
    encoder.passes[0] = 0
    cache = FeatureCache(tmp_path / "widths")
    together = cache.get_layers(points, layers, View("single"))
    rows = sum(int(length) + 1 for length in points.lengths)
    assert encoder.passes[0] == math.ceil(rows / default_batch_size(encoder))
    for layer, features in zip(layers, together, strict=True):
        alone = FeatureCache(tmp_path / "alone").get(points, layer, View("single"))
        for index in (0, 7, len(points) - 1):
            np.testing.assert_array_equal(features.episode(index), alone.episode(index))
    encoder.passes[0] = 0
    cache.get_layers(points, layers, View("single"))
    assert encoder.passes[0] == 0


def test_an_encoder_that_is_read_at_an_inner_layer_still_has_its_last() -> None:
    encoder = load_encoder("random", layer=1)
    specs = [one.spec for one in at_layers(encoder, [0, 1, -1, 4])]
    assert [spec.layer for spec in specs] == [0, 1, -1, -1]
    assert (specs[2].embed_dim, specs[2].grid) == (64, (8, 8))
    assert load_encoder("random").spec == specs[2]


def test_missing_shards_of_one_layer_are_filled(points: Dataset, tmp_path: Path) -> None:
    encoder = Deep()
    layers = at_layers(encoder, range(3))
    cache = FeatureCache(tmp_path, shard_bytes=1000)
    first = [
        [features.episode(i) for i in range(len(points))]
        for features in cache.get_layers(points, layers, View("single"))
    ]
    victim = sorted(tmp_path.glob("*/*.safetensors"))[5]
    kept = victim.read_bytes()
    victim.unlink()
    again = FeatureCache(tmp_path, shard_bytes=1000).get_layers(points, layers, View("single"))
    assert victim.read_bytes() == kept
    for features, expected in zip(again, first, strict=True):
        for index, rows in enumerate(expected):
            np.testing.assert_array_equal(features.episode(index), rows)


def test_layers_of_one_pass_equal_single_passes() -> None:
    rng = np.random.default_rng(0)
    episodes = [rng.normal(size=(steps, 4)).astype(np.float32) for steps in (9, 1, 14)]
    encoder = Deep()
    found = list(encode_episodes_layers(encoder, episodes, View("single"), (2, 0, 1), batch_size=4))
    assert len(found) == len(episodes)
    for observations, layers in zip(episodes, found, strict=True):
        for layer, rows in zip((2, 0, 1), layers, strict=True):
            (alone,) = at_layers(encoder, (layer,))
            np.testing.assert_array_equal(rows, encode_view(alone, observations, View("single"), batch_size=4))


def test_best_layer_is_chosen_on_validation_episodes(points: Dataset, tmp_path: Path) -> None:
    profile = probe_layers(points, Deep(), cache=FeatureCache(tmp_path), replicates=30)
    assert profile.best_layer == 1 and set(profile.validation_r2) == {0, 1, 2}
    macro = {r.layer: r for r in profile.rows if (r.metric, r.dimension, r.subset) == ("action_r2", "macro", "all")}
    assert macro[1].value > 0.999 > macro[2].value > macro[0].value  # type: ignore[operator]
    best = next(r for r in profile.rows if r.metric == "action_r2_best_layer" and r.subset == "all")
    last = next(r for r in profile.rows if r.metric == "action_r2_last_layer" and r.subset == "all")
    assert (best.layer, best.value, last.layer) == (1, macro[1].value, 2)
    assert profile.replicates["action_r2|ridge|pair|1|all|layer:1"].shape == (30,)
    (middle,) = at_layers(Deep(), (1,))
    alone = probe(points, middle, readouts=("ridge",), inputs=("pair",), horizons=(1,), controls=(), replicates=30)
    expected = next(r for r in alone.rows if (r.metric, r.dimension, r.subset) == ("action_r2", "macro", "all"))
    assert macro[1].value == expected.value
    write_depth_profile(tmp_path / "profile.html", profile.rows)
    page = (tmp_path / "profile.html").read_text()
    assert "block 1" in page and "https://cdn" not in page.split("Plotly.newPlot")[-1]


def test_bad_layers_are_named(points: Dataset, tmp_path: Path) -> None:
    with pytest.raises(LatentGymError, match="layers 0 … 2"):
        probe_layers(points, Deep(), layers=(3,))
    with pytest.raises(LatentGymError, match="at least one layer"):
        probe_layers(points, Deep(), layers=())
    with pytest.raises(LatentGymError, match="probe_layers"):
        write_depth_profile(tmp_path / "none.html", [])
