from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentgym.encoders import Encoder, EncoderSpec, FeatureCache, Latents, load_encoder
from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.probes import ProbeResult, probe, robustness
from latentgym.results import Row
from latentgym.trajectories import Dataset

FAST: dict[str, Any] = {"replicates": 30}


class Velocity(Encoder):
    """A video encoder of two frames that sees their difference alone."""

    def __init__(self) -> None:
        self.spec = EncoderSpec(
            name="velocity", family="test", image_size=16, clip_length=2, tubelet=2, temporal=True, embed_dim=16 * 3
        )

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        rows = (clip[:, 1] - clip[:, 0]).mean(-1).flatten(1)
        return Latents(tokens=rows[:, None, None], times=torch.tensor([1]), layer=layer)


def row(result: ProbeResult, metric: str, condition: str | None, **columns: object) -> Row:
    wanted = {"dimension": "macro", "subset": "all", "condition": condition, **columns}
    (found,) = [
        r for r in result.rows if r.metric == metric and all(getattr(r, name) == v for name, v in wanted.items())
    ]
    return found


@pytest.fixture(scope="module")
def pixels(points: Dataset, cache: FeatureCache) -> ProbeResult:
    conditions = ("brightness:1", "gaussian_noise:1", "gaussian_noise:5")
    return robustness(
        points, load_encoder("pixels"), conditions=conditions, readouts=("ridge", "mlp"), mlp_steps=20, mlp_seeds=2,
        cache=cache, **FAST,
    )  # fmt: skip


def test_clean_scores_are_those_of_the_probe(points: Dataset, cache: FeatureCache, pixels: ProbeResult) -> None:
    expected = probe(points, "pixels", readouts=("ridge",), horizons=(1,), controls=(), cache=cache, **FAST)
    clean = row(pixels, "action_r2", None, readout="ridge")
    (theirs,) = [r for r in expected.rows if (r.metric, r.input, r.subset, r.dimension) == (
        "action_r2", "pair", "all", "macro")]  # fmt: skip
    assert clean.value == theirs.value and clean.low == theirs.low


def test_drop_and_similarity(pixels: ProbeResult) -> None:
    for readout in ("ridge", "mlp"):
        clean = row(pixels, "action_r2", None, readout=readout).value
        for condition in ("gaussian_noise:1", "gaussian_noise:5"):
            after = row(pixels, "corrupted_r2", condition, readout=readout).value
            drop = row(pixels, "r2_drop", condition, readout=readout)
            assert drop.value == pytest.approx((clean or 0) - (after or 0))
            key = f"r2_drop|{readout}|pair|1|all|{condition}"
            assert pixels.replicates[key].shape == (30,)
            assert (row(pixels, "corrupted_clipped_r2", condition, readout=readout).value or 0) >= 0
    mild, strong = (row(pixels, "latent_cosine_similarity", f"gaussian_noise:{s}").value for s in (1, 5))
    assert 1 > (mild or 0) > (strong or 0) > 0


def test_time_matters_to_a_readout_of_motion(points: Dataset, cache: FeatureCache) -> None:
    """Planted: the state's difference is the action, so reversal flips its sign and freezing leaves nothing."""
    result = robustness(points, "state", k=1, conditions=(), cache=cache, **FAST)
    clean = row(result, "action_r2", None).value
    assert clean is not None and clean > 0.999
    assert (row(result, "stress_r2", "reverse").value or 0) < -2.5
    assert row(result, "reverse_negated_r2", "reverse").value == pytest.approx(clean, abs=0.02)
    assert abs(row(result, "stress_r2", "freeze").value or 1) < 0.1
    assert (row(result, "stress_r2", "shuffle").value or 0) < 0.5


@pytest.mark.parametrize("k", [1, 3])
def test_video_clips_are_reordered_as_a_whole(points: Dataset, cache: FeatureCache, k: int) -> None:
    result = robustness(points, Velocity(), k=k, conditions=(), cache=cache, **FAST)
    assert row(result, "stress_r2", "freeze").value is not None
    from latentgym.probes.robustness import _Run  # the features behind the rows

    # A frozen clip of an encoder of differences is exactly zero, a reversed one exactly negated.
    seen: list[Any] = []
    original = _Run.stressed

    def keep(self: Any, stress: str) -> Any:
        features = original(self, stress)
        seen.append(
            (self.clean.clip.episode(int(self.test.episode[0])), features.clip.episode(int(self.test.episode[0])))
        )
        return features

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "stressed", keep)
        robustness(points, Velocity(), k=k, conditions=(), stresses=("freeze", "reverse"), cache=cache, **FAST)
    assert not seen[0][1].any()
    if k == 1:
        np.testing.assert_array_equal(seen[1][1], -seen[1][0])


def test_same_seed_same_rows(points: Dataset, cache: FeatureCache, pixels: ProbeResult) -> None:
    first, second = (
        robustness(points, "pixels", conditions=("snow:2",), stresses=("shuffle",), cache=cache, **FAST).rows
        for _ in range(2)
    )
    assert first == second


def test_bad_input_is_named(points: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="'gaussian_blur'"):
        robustness(points, "pixels", conditions=("gausian_blur:1",))
    with pytest.raises(LatentGymError, match="1 … 5"):
        robustness(points, "pixels", conditions=("snow:9",))
    with pytest.raises(LatentGymError, match="reads no pixels"):
        robustness(points, "state")
    with pytest.raises(UnknownNameError, match="unknown stress"):
        robustness(points, "pixels", stresses=("melt",))
