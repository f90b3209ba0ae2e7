from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgym.encoders import FeatureCache
from latentgym.probes import ProbeResult, probe
from latentgym.probes.description_length import RESOLUTION, bits_saved, gaussian_code_bits, growing_prefixes
from latentgym.trajectories import Dataset


def test_worked_example() -> None:
    """Preceding actions 0, 4: the constant code is N(2, 4). The readout's code is N(prediction, 1)."""
    preceding = np.array([[0.0], [4.0]])
    actions, predicted = np.array([[5.0], [1.0]]), np.array([[4.0], [1.0]])
    # Widths: the readout's standard deviation is half as large, 1 bit each. Errors: 9/8 and 1/8 nats against 1/2 and 0.
    expected = np.array([[1 + (9 / 8 - 1 / 2) / np.log(2)], [1 + (1 / 8) / np.log(2)]])
    np.testing.assert_allclose(bits_saved(actions, predicted, np.array([1.0]), preceding), expected, rtol=1e-12)


def test_code_lengths_are_those_of_a_density() -> None:
    """Kraft: 2 to the minus code length integrates to one."""
    grid = np.linspace(-30, 30, 60_001)[:, None]
    lengths = gaussian_code_bits(grid - 1.5, np.array([4.0]))
    total = (2.0**-lengths).sum() * (grid[1, 0] - grid[0, 0])
    assert total == pytest.approx(1.0, abs=1e-6)


def test_saving_is_half_the_log_of_unexplained_variance() -> None:
    rng = np.random.default_rng(0)
    signal, noise = rng.normal(size=(50_000, 1)), 0.5 * rng.normal(size=(50_000, 1))
    found = bits_saved(signal + noise, signal, np.array([0.25]), signal + noise).mean()
    assert found == pytest.approx(0.5 * np.log2(1.25 / 0.25), abs=0.01)


def test_a_perfect_readout_saves_a_bounded_number_and_constant_dimensions_none() -> None:
    preceding = np.array([[0.0, 7.0], [2.0, 7.0]])
    saved = bits_saved(preceding, preceding, np.zeros(2), preceding)
    assert (saved[:, 1] == 0).all()
    np.testing.assert_allclose(saved[:, 0], -np.log2(RESOLUTION) + 0.5 / np.log(2))


@settings(max_examples=30, deadline=None)
@given(st.integers(5, 300), st.integers(2, 8), st.integers(0, 50))
def test_prefixes_grow_from_enough_episodes_to_all_of_them(count: int, folds: int, seed: int) -> None:
    if count < folds:
        return
    prefixes = growing_prefixes(np.arange(count) * 3, folds, seed)
    assert prefixes[-1][0] == 1.0 and len(prefixes[-1][1]) == count
    for (_, smaller), (_, larger) in itertools.pairwise(prefixes):
        assert folds <= len(smaller) < len(larger) and set(smaller) < set(larger)


@pytest.fixture(scope="module")
def online(make_dataset: Callable[..., Dataset], tmp_path_factory: pytest.TempPathFactory) -> dict[str, ProbeResult]:
    dataset, cache = make_dataset((12,) * 60), FeatureCache(tmp_path_factory.mktemp("features"))
    return {
        name: probe(
            dataset, name, readouts=(), horizons=(1,), controls=(), description_length=True, cache=cache, replicates=50
        )
        for name in ("state", "proprio")
    }


def test_informative_latents_save_bits_and_noise_does_not(online: dict[str, ProbeResult]) -> None:
    macro = {
        name: next(r for r in result.rows if r.metric == "description_length_bits_saved" and r.dimension == "macro")
        for name, result in online.items()
    }
    assert macro["state"].value > 4 and macro["state"].low > 3  # type: ignore[operator]
    assert macro["proprio"].value < 0.05  # type: ignore[operator]
    assert online["state"].replicates["description_length_bits_saved|ridge_mean|pair|1|all"].shape == (50,)


def test_sample_efficiency_ends_at_the_score_of_all_episodes(online: dict[str, ProbeResult]) -> None:
    rows = [
        row
        for row in online["state"].rows
        if row.metric == "sample_efficiency_r2" and row.dimension == "macro" and row.subset == "all"
    ]
    assert [row.condition for row in rows] == ["train:16%", "train:32%", "train:64%", "train:100%"]
    assert rows[-1].value is not None and rows[-1].value > 0.999
