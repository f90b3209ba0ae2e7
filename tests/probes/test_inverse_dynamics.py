from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from latentgym.encoders import Encoder, EncoderSpec, FeatureCache, Latents, View, load_encoder
from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.probes import ProbeResult, probe, probe_floor, probe_floors
from latentgym.probes.inverse_dynamics import READOUTS
from latentgym.results import Row
from latentgym.trajectories import Dataset, split_episodes

FAST = {"mlp_steps": 150, "mlp_seeds": 2, "replicates": 50, "horizons": (1, 4)}


class Planted(Encoder):
    """The state times a gain, beside noise: how much of the action is in the latent is known."""

    def __init__(self, gain: float) -> None:
        self.gain = gain
        self.spec = EncoderSpec(name=f"planted-{gain}", family="test", modality="state", image_size=0, embed_dim=9)

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        noise = torch.sin(clip.double() * 1e4).float().repeat(1, 1, 2)
        tokens = torch.cat([clip * self.gain, noise], dim=-1)[:, :, None]
        return Latents(tokens=tokens, times=torch.arange(clip.shape[1]), layer=layer)


def macro(result: ProbeResult, metric: str, **columns: object) -> Row:
    wanted = {"readout": "ridge", "input": "pair", "k": 1, "subset": "all", "dimension": "macro", **columns}
    (row,) = [
        row
        for row in result.rows
        if row.metric == metric and all(getattr(row, name) == value for name, value in wanted.items())
    ]
    return row


@pytest.fixture(scope="module")
def of_state(points: Dataset, cache: FeatureCache) -> ProbeResult:
    return probe(points, "state", cache=cache, **FAST)  # type: ignore[arg-type]


def test_state_pair_determines_the_action_and_one_frame_does_not(of_state: ProbeResult) -> None:
    assert macro(of_state, "action_r2").value > 0.999  # type: ignore[operator]
    assert macro(of_state, "action_r2", k=4).value > 0.999  # type: ignore[operator]
    assert macro(of_state, "action_r2_random_actions", subset="random_actions").value > 0.999  # type: ignore[operator]
    single = macro(of_state, "single_frame_r2", input="single")
    assert abs(single.value or 1) < 0.15
    gain = macro(of_state, "temporal_gain")
    assert gain.value == pytest.approx((macro(of_state, "action_r2").value or 0) - (single.value or 0))
    assert gain.low is not None and gain.low > 0.8
    assert macro(of_state, "action_r2", readout="mlp").value > 0.8  # type: ignore[operator]
    accuracy = macro(of_state, "balanced_accuracy", dimension="gripper")
    assert accuracy.value == pytest.approx(1)


def test_state_from_one_frame(of_state: ProbeResult, points: Dataset, cache: FeatureCache) -> None:
    """The state tells the state, and noise tells nothing of it; scored once, at the smallest horizon."""
    row = macro(of_state, "state_r2", input="single")
    assert row.value > 0.999 and row.n == macro(of_state, "action_r2").n  # type: ignore[operator]
    assert of_state.replicates["state_r2|ridge|single|1|all"].shape == (50,)
    assert not [row for row in of_state.rows if row.metric == "state_r2" and row.k != 1]
    noise = probe(points, "proprio", readouts=("ridge",), horizons=(1,), controls=(), cache=cache, replicates=50)
    found = macro(noise, "state_r2", input="single")
    assert found.low < 0.1 and abs(found.value) < 0.2  # type: ignore[operator, arg-type]


def test_mean_of_four_actions_says_a_quarter_of_the_first(of_state: ProbeResult) -> None:
    assert macro(of_state, "action_r2_first", k=4).value == pytest.approx(0.25, abs=0.12)


def test_controls_fail_where_they_must(of_state: ProbeResult) -> None:
    assert abs(macro(of_state, "action_r2_shuffled_actions").value or 1) < 0.1
    assert abs(macro(of_state, "action_r2_shuffled_endpoints").value or 1) < 0.15
    real, control = macro(of_state, "action_r2"), macro(of_state, "action_r2_control_task")
    assert macro(of_state, "selectivity").value == pytest.approx((real.value or 0) - (control.value or 0))


def test_chunks_differences_and_time_shifts(of_state: ProbeResult, points: Dataset, cache: FeatureCache) -> None:
    assert abs(macro(of_state, "action_r2_time_shifted").value or 1) < 0.15
    result = probe(
        points, "state", readouts=("ridge",), inputs=("difference",), targets=("mean", "chunk"), horizons=(1, 4),
        controls=(), cache=cache, replicates=20,
    )  # fmt: skip
    assert macro(result, "action_r2", input="difference").value > 0.999  # type: ignore[operator]
    # Four independent actions of which only the sum shows: each is known as well as the first alone.
    chunk = macro(result, "action_r2_chunk", input="difference", k=4).value
    assert chunk == pytest.approx(0.25, abs=0.1)
    assert {row.dimension for row in result.rows if row.metric == "action_r2_chunk"} == {
        "macro", "translation", "gripper",
    }  # fmt: skip


TINY = {"attentive": {"depth": 2, "width": 8}, "transformer": {"depth": 1, "width": 8}}


def test_every_readout_has_scores_and_selectivity(points: Dataset, cache: FeatureCache) -> None:
    result = probe(
        points, "state", readouts=READOUTS, horizons=(1,), mlp_steps=4, mlp_seeds=1, replicates=20, cache=cache,
        controls=("control_task", "control_task_every_readout"), readout_options=TINY,
    )  # fmt: skip
    expected = {"ridge", "ridge_mean", "mlp", "attentive", "transformer"}
    assert {row.readout for row in result.rows if row.metric == "action_r2"} == expected
    assert {row.readout for row in result.rows if row.metric == "selectivity"} == expected
    with pytest.raises(UnknownNameError, match="'mlp'"):
        probe(points, "state", readout_options={"mpl": {}})


@pytest.mark.parametrize("controls", [(), ("control_task",), ("control_task", "control_task_every_readout")])
def test_where_the_mean_is_the_default_pooling_both_ridges_are_one(
    controls: tuple[str, ...], points: Dataset, cache: FeatureCache
) -> None:
    def measured(*readouts: str) -> ProbeResult:
        return probe(
            points, "state", readouts=readouts, controls=("shuffled_actions", *controls), replicates=20, cache=cache,
            description_length=False, horizons=(1, 4),
        )  # fmt: skip

    both, alone = measured("ridge", "ridge_mean"), measured("ridge_mean")
    own = [row for row in both.rows if row.readout == "ridge_mean"]
    assert own and len(own) == len(alone.rows)
    for row, expected in zip(own, alone.rows, strict=True):
        assert row.value == pytest.approx(expected.value, rel=1e-6)
        assert dataclasses.replace(row, value=0, low=0, high=0) == dataclasses.replace(expected, value=0, low=0, high=0)
    names = {name for name in both.replicates if "|ridge_mean|" in name}
    assert names == {*alone.replicates}
    for name in names:
        np.testing.assert_allclose(both.replicates[name], alone.replicates[name], rtol=1e-6)


def test_tokens_reach_the_readouts_of_tokens(points: Dataset, cache: FeatureCache) -> None:
    encoder = load_encoder("pixels", image_size=4)
    result = probe(
        points, encoder, readouts=("transformer",), horizons=(4,), mlp_horizons=(4,), mlp_steps=2, mlp_seeds=1,
        targets=("chunk",), controls=(), replicates=20, cache=cache, readout_options=TINY,
    )  # fmt: skip
    assert macro(result, "action_r2", readout="transformer", k=4).value is not None
    assert macro(result, "action_r2_chunk", readout="transformer", k=4).value is not None
    tokens = cache.get(points, encoder, View("single"), pooling="tokens")
    assert tokens.dim == 4 * 4 * 3
    grid = cache.get(points, encoder, View("single"))
    np.testing.assert_array_equal(tokens.episode(3), grid.episode(3))


def test_pixel_principal_components_are_a_floor(points: Dataset, cache: FeatureCache) -> None:
    result = probe(points, "pixel_pca", horizons=(1,), replicates=20, cache=cache)
    row = macro(result, "action_r2")
    assert (row.encoder, row.family) == ("pixel_pca", "floor") and row.value is not None
    with pytest.raises(LatentGymError, match="cache="):
        probe_floor(points, "pixel_pca")


def test_planted_information_orders_encoders_and_noise_has_none(points: Dataset, cache: FeatureCache) -> None:
    some, none = (
        macro(probe(points, Planted(gain), readouts=("ridge",), horizons=(1,), cache=cache), "action_r2")
        for gain in (1.0, 0.0)
    )
    assert some.value is not None and some.value > 0.9
    assert none.value is not None and none.value < 0.1


def test_rows_are_tidy_and_never_nan(of_state: ProbeResult, points: Dataset) -> None:
    split = split_episodes(points)
    keys = [dataclasses.astuple(dataclasses.replace(r, value=None, low=None, high=None)) for r in of_state.rows]
    assert len(set(keys)) == len(keys)
    for row in of_state.rows:
        assert row.encoder == "state" and row.env == "test/Point-v0"
        assert all(v is None or np.isfinite(v) for v in (row.value, row.low, row.high))
        if row.metric == "description_length_bits_saved":
            assert row.n is not None and 0 < row.n < len(split.train), "training episodes are coded"
        elif row.subset == "all":
            assert row.n == len(split.test)
        if row.dimension == "macro" and row.value is not None:
            parts = (row.metric, row.readout, row.input, row.k, row.subset, row.condition)
            key = "|".join(str(part) for part in parts if part is not None)
            assert of_state.replicates[key].shape == (50,)
    assert {row.dimension for row in of_state.rows if row.metric == "action_r2"} == {
        "macro", "translation", "gripper", "x", "y", "grip",
    }  # fmt: skip


def test_same_seed_same_rows(points: Dataset, cache: FeatureCache, of_state: ProbeResult) -> None:
    assert probe(points, "state", cache=cache, **FAST).rows == of_state.rows  # type: ignore[arg-type]


def test_subsets_of_no_window_are_undefined_not_zero(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset((6,) * 12)
    split = split_episodes(dataset)
    experts = tuple(i for i in split.test if dataset.policies[i] == "expert")
    result = probe_floor(dataset, "constant", split=dataclasses.replace(split, test=experts), replicates=20)
    row = macro(result, "action_r2_random_actions", subset="random_actions")
    assert (row.value, row.low, row.high, row.n) == (None, None, None, 0)


def test_constant_action_dimension_is_listed_and_left_out(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(constant_grip=True)
    result = probe(dataset, "state", readouts=("ridge",), horizons=(1,), replicates=20)
    assert result.constant_dimensions == ("grip",)
    assert macro(result, "action_r2", dimension="grip").value is None
    assert macro(result, "action_r2").value > 0.99  # type: ignore[operator]


def test_episodes_shorter_than_the_horizon_are_skipped(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset((12, 2, 12) * 10)
    result = probe(dataset, "state", readouts=("ridge",), replicates=20, controls=())
    test = split_episodes(dataset).test
    assert macro(result, "action_r2", k=1).n == len(test)
    assert macro(result, "action_r2", k=4).n == sum(dataset.lengths[i] >= 4 for i in test)
    with pytest.raises(LatentGymError, match="horizon k = 30"):
        probe(dataset, "state", horizons=(30,))


def test_floors(points: Dataset) -> None:
    rows = probe_floors(points, replicates=50)
    assert {row.encoder: row.family for row in rows} == {"constant": "floor", "previous_action": "reference"}
    for row in rows:
        if row.metric == "action_r2" and row.dimension == "macro":
            assert row.value is not None and -0.4 < row.value < 0.15
        if row.encoder == "constant" and row.metric == "pearson_r":
            assert row.value is None
    assert probe(points, "constant", replicates=50).rows == [row for row in rows if row.encoder == "constant"]


def test_bad_options_are_named(points: Dataset, make_dataset: Callable[..., Dataset]) -> None:
    with pytest.raises(UnknownNameError, match="'ridge'"):
        probe(points, "state", readouts=("rige",))
    with pytest.raises(UnknownNameError, match="unknown input"):
        probe(points, "state", inputs=("pears",))  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="did you mean 'proprio'"):
        probe(points, "propio")
    with pytest.raises(LatentGymError, match="at least 5 groups"):
        probe(make_dataset((12,) * 6), "state")


def test_infinite_latents_are_named(points: Dataset, tmp_path: Path) -> None:
    with pytest.raises(LatentGymError, match="NaN or infinite latents"):
        probe(points, Planted(float("inf")), cache=FeatureCache(tmp_path))
