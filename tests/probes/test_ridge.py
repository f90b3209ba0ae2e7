from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from latentgym.errors import LatentGymError
from latentgym.probes.ridge import RidgeProbe, grouped_folds

LAMBDAS = [0.1, 1.0, 10.0, 100.0, 1000.0]


def problem(seed: int, rows: int, features: int, targets: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlated features of very different scales and offsets, one of them constant, in groups of uneven size."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features)) @ rng.normal(size=(features, features)) / features**0.5
    x = x * rng.uniform(0.01, 9, features) + rng.normal(size=features) * 20
    x[:, 0] = 2.7
    y = x @ rng.normal(size=(features, targets)) * 0.1 + rng.normal(size=(rows, targets)) + 5
    return x, y, np.sort(rng.integers(0, 11, rows))


def reference(x: np.ndarray, y: np.ndarray, groups: np.ndarray, standardize: bool) -> Any:
    steps = [StandardScaler()] if standardize else []
    search = GridSearchCV(
        make_pipeline(*steps, Ridge(solver="svd")), {"ridge__alpha": LAMBDAS}, cv=GroupKFold(5), scoring="r2"
    )
    return search.fit(x, y, groups=groups)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(150, 30), (60, 90), (70, 64)]), st.booleans())
def test_equals_scikit_learn_with_grouped_folds(seed: int, shape: tuple[int, int], standardize: bool) -> None:
    x, y, groups = problem(seed, *shape)
    expected = reference(x, y, groups, standardize)
    probe = RidgeProbe(LAMBDAS, standardize=standardize).fit(x, y, groups)
    scores = [probe.cv_scores_[penalty].mean() for penalty in LAMBDAS]
    np.testing.assert_allclose(scores, expected.cv_results_["mean_test_score"], rtol=1e-7, atol=1e-7)
    assert probe.lambda_ == expected.best_params_["ridge__alpha"]
    np.testing.assert_allclose(probe.predict(x), expected.predict(x), rtol=1e-8, atol=1e-8 * np.abs(y).max())
    assert probe.score(x, y) == pytest.approx(expected.score(x, y), abs=1e-8)


def test_blocked_factorisation_spans_several_blocks() -> None:
    x, y, groups = problem(0, 900, 600)
    expected = make_pipeline(StandardScaler(), Ridge(1.0, solver="svd")).fit(x, y)
    probe = RidgeProbe([1.0]).fit(x, y, groups)
    np.testing.assert_allclose(probe.predict(x), expected.predict(x), rtol=1e-8, atol=1e-8 * np.abs(y).max())


def test_ill_conditioned_folds_fall_back_to_double_precision() -> None:
    x, y, groups = problem(0, 300, 40)
    x[:, 1] = x[:, 2] * (1 + 1e-9)
    lambdas = [1e-7, 1e-6]
    probe = RidgeProbe(lambdas).fit(x, y, groups)
    pipeline = make_pipeline(StandardScaler(), Ridge(solver="svd"))
    search = GridSearchCV(pipeline, {"ridge__alpha": lambdas}, cv=GroupKFold(5), scoring="r2").fit(x, y, groups=groups)
    scores = [probe.cv_scores_[penalty].mean() for penalty in lambdas]
    np.testing.assert_allclose(scores, search.cv_results_["mean_test_score"], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=30, max_size=120), st.integers(2, 5))
def test_folds_are_those_of_group_k_fold(labels: list[int], folds: int) -> None:
    groups = np.array(labels)
    if len(np.unique(groups)) < folds:
        return
    ours = grouped_folds(groups, folds)
    for index, (_, held) in enumerate(GroupKFold(folds).split(groups, groups=groups)):
        assert {label for label, fold in ours.items() if fold == index} == set(groups[held].tolist())


@pytest.mark.parametrize(("rows", "features"), [(9000, 40), (60, 90)])
def test_a_stream_equals_one_fit(rows: int, features: int) -> None:
    x, y, groups = problem(3, rows, features)
    whole = RidgeProbe(LAMBDAS).fit(x, y, groups)
    stream = RidgeProbe(LAMBDAS).plan_folds(groups)
    for part in np.array_split(np.arange(rows), 7):
        stream.partial_fit(x[part], y[part], groups[part])
    stream.finalize()
    assert stream.lambda_ == whole.lambda_
    np.testing.assert_allclose(stream.predict(x), whole.predict(x), rtol=1e-9)


def test_a_stream_holds_no_more_than_its_buffer() -> None:
    x, y, groups = problem(3, 9000, 40)
    stream = RidgeProbe(LAMBDAS).plan_folds(groups)
    held = []
    for part in np.array_split(np.arange(9000), 30):
        stream.partial_fit(x[part], y[part], groups[part])
        held.append(sum(len(block[0]) for block in stream._pending))
    assert max(held) <= 4096


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([(150, 30), (60, 90)]),
    st.lists(st.integers(1, 149), max_size=6),
)
def test_a_stream_in_any_blocks_equals_fit_without_a_plan(seed: int, shape: tuple[int, int], cuts: list[int]) -> None:
    x, y, groups = problem(seed, *shape)
    whole, stream = RidgeProbe(LAMBDAS).fit(x, y, groups), RidgeProbe(LAMBDAS)
    for rows in np.split(np.arange(len(x)), sorted({cut for cut in cuts if cut < len(x)})):
        stream.partial_fit(x[rows], y[rows], groups[rows])
    stream.finalize()
    assert stream.lambda_ == whole.lambda_
    for penalty, scores in whole.cv_scores_.items():
        np.testing.assert_allclose(stream.cv_scores_[penalty], scores, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(stream.predict(x), whole.predict(x), rtol=1e-8, atol=1e-8 * np.abs(y).max())
    np.testing.assert_allclose(stream.cv_mse_, whole.cv_mse_, rtol=1e-8)


def test_a_long_unplanned_stream_keeps_each_group_in_one_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it outgrows its buffer, folds are planned from the groups so far and later groups join the lightest."""
    monkeypatch.setattr("latentgym.probes.ridge._UNPLANNED_BYTES", 0)
    monkeypatch.setattr("latentgym.probes.ridge._BUFFER_ROWS", 100)
    x, y, groups = problem(3, 400, 20)
    stream = RidgeProbe(LAMBDAS)
    for part in np.array_split(np.arange(400), 9):
        stream.partial_fit(x[part], y[part], groups[part])
    folds = dict(stream._fold_of)
    assert set(folds) <= set(groups.tolist()) and set(folds.values()) == set(range(5))
    assert stream.finalize().score(x, y) > 0.5


def test_out_of_fold_error_is_that_of_cross_validation() -> None:
    x, y, groups = problem(4, 150, 30)
    probe = RidgeProbe(LAMBDAS, target_groups=[[0], [1, 2]]).fit(x, y, groups)
    for column, penalty in enumerate((probe.lambdas_[0], probe.lambdas_[1], probe.lambdas_[1])):
        pipeline = make_pipeline(StandardScaler(), Ridge(penalty, solver="svd"))
        predicted = cross_val_predict(pipeline, x, y[:, column], groups=groups, cv=GroupKFold(5))
        assert probe.cv_mse_[column] == pytest.approx(np.square(predicted - y[:, column]).mean(), rel=1e-7)
    assert np.isnan(RidgeProbe([1.0]).fit(x, y, groups).cv_mse_).all()


def test_rows_are_read_in_blocks_from_a_memory_map(tmp_path: Path) -> None:
    x, y, groups = problem(3, 9000, 40)
    mapped = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float64, x.shape)
    mapped[:] = x
    np.testing.assert_array_equal(
        RidgeProbe(LAMBDAS).fit(mapped, y, groups).predict(x), RidgeProbe(LAMBDAS).fit(x, y, groups).predict(x)
    )
    mapped[8000, 3] = np.inf
    with pytest.raises(LatentGymError, match="row 8000, column 3"):
        RidgeProbe(LAMBDAS).fit(mapped, y, groups)


def test_climbing_finds_the_grids_penalty() -> None:
    for seed in range(4):
        x, y, groups = problem(seed, 150, 60)
        grid, climb = (RidgeProbe(LAMBDAS, search=search).fit(x, y, groups) for search in ("grid", "climb"))
        assert climb.lambda_ == grid.lambda_
        assert set(climb.cv_scores_) <= set(grid.cv_scores_)
        np.testing.assert_array_equal(climb.predict(x), grid.predict(x))


def test_climbing_is_not_caught_on_the_lower_of_two_peaks() -> None:
    """Small differences need a small penalty, and what stands still in an episode is best ignored with a large one."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 50)
    y = rng.normal(size=(1500, 2))
    place = rng.normal(size=(1500, 2))
    still = rng.normal(size=(30, 12))[groups]
    x = np.hstack([place, place + 0.02 * y, still])
    y += 0.5 * rng.normal(size=(30, 2))[groups]
    grid, climb = (RidgeProbe(search=search).fit(x, y, groups) for search in ("grid", "climb"))
    scores = np.array([values.mean() for _, values in sorted(grid.cv_scores_.items())])
    assert ((scores[1:-1] < scores[:-2]) & (scores[1:-1] < scores[2:])).any()
    assert climb.lambda_ == grid.lambda_ < 1


def test_target_groups_choose_their_own_penalty() -> None:
    x, y, groups = problem(6, 150, 60, targets=2)
    y[:, 1] = np.random.default_rng(0).normal(size=150)
    joint = RidgeProbe(LAMBDAS, target_groups=[[0], [1]]).fit(x, y, groups)
    for column in (0, 1):
        alone = RidgeProbe(LAMBDAS).fit(x, y[:, column], groups)
        assert joint.lambdas_[column] == alone.lambda_
        np.testing.assert_allclose(joint.predict(x)[:, column], alone.predict(x), rtol=1e-9)
    assert joint.lambdas_[0] < joint.lambdas_[1]


def test_constant_features_get_no_weight() -> None:
    x, y, groups = problem(1, 150, 30)
    probe = RidgeProbe(LAMBDAS).fit(x, y, groups)
    assert not probe.coef_[0].any()
    assert np.isfinite(probe.predict(np.concatenate([x[:, :1] + 1, x[:, 1:]], axis=1))).all()


@pytest.mark.parametrize(("rows", "features"), [(150, 30), (60, 90)])
def test_feature_that_varies_in_one_group_alone(rows: int, features: int) -> None:
    """Outside that group's fold the feature is constant, which a difference of sums shows only up to rounding."""
    x, y, groups = problem(1, rows, features)
    for column, group in ((1, 2), (2, 5)):
        x[:, column] = np.where(groups == group, x[:, column], 93.7)
    expected = reference(x, y, groups, True)
    probe = RidgeProbe(LAMBDAS).fit(x, y, groups)
    scores = [probe.cv_scores_[penalty].mean() for penalty in LAMBDAS]
    np.testing.assert_allclose(scores, expected.cv_results_["mean_test_score"], rtol=1e-7, atol=1e-7)


def test_fold_floor_keeps_one_episode_from_choosing_the_penalty() -> None:
    """A feature that is all but still, save in one episode, where it has nothing to do with the target."""
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(600, 3)), np.repeat(np.arange(20), 30)
    x[:, 2] = np.where(groups == 0, 300.0, 1e-2 * x[:, 2])
    y = x[:, :1] + 0.1 * rng.normal(size=(600, 1))
    lambdas = [0.1, 1e5]
    plain, floored = (RidgeProbe(lambdas, fold_floor=floor).fit(x, y, groups) for floor in (-np.inf, -1.0))
    assert plain.cv_scores_[0.1][0] < floored.cv_scores_[0.1][0]
    assert (plain.lambda_, floored.lambda_) == (1e5, 0.1)
    assert floored.cv_scores_[0.1][0] == pytest.approx((4 - 1) / 5, abs=0.05), "four folds near 1, and one of -1"


def test_scale_floor_tames_a_feature_that_hardly_moved_in_training() -> None:
    x, y, groups = problem(1, 150, 30)
    x[:, 1] = 1e-6 * np.random.default_rng(0).normal(size=150)
    moved = x.copy()
    moved[0, 1] = 1.0
    plain, floored = (RidgeProbe([10.0], scale_floor=floor).fit(x, y, groups) for floor in (0.0, 0.3))
    assert np.abs(plain.predict(moved) - plain.predict(x)).max() > 1e3
    assert np.abs(floored.predict(moved) - floored.predict(x)).max() < 1.0
    even = x[:, 2:] / x[:, 2:].std(0)
    same = [RidgeProbe(LAMBDAS, scale_floor=floor).fit(even, y, groups).predict(even) for floor in (0.0, 0.3)]
    np.testing.assert_array_equal(*same)


def test_constant_target_is_predicted_and_ignored_in_the_choice() -> None:
    x, y, groups = problem(1, 150, 30)
    y[:, 1] = 4.0
    probe = RidgeProbe(LAMBDAS).fit(x, y, groups)
    np.testing.assert_allclose(probe.predict(x)[:, 1], 4.0)
    assert probe.lambda_ == RidgeProbe(LAMBDAS).fit(x, y[:, [0, 2]], groups).lambda_


def test_bad_input_is_named() -> None:
    x, y, groups = problem(1, 60, 10)
    with pytest.raises(LatentGymError, match="at least 1 feature, found 0"):
        RidgeProbe().fit(x[:, :0], y, groups)
    with pytest.raises(LatentGymError, match="at least 5 groups"):
        RidgeProbe().fit(x, y, groups % 3)
    with pytest.raises(LatentGymError, match="at least 5 groups"):
        RidgeProbe().partial_fit(x, y, np.zeros(60, int)).finalize()
    with pytest.raises(LatentGymError, match="60, 59 and 60 rows"):
        RidgeProbe().fit(x, y[:-1], groups)
    broken = x.copy()
    broken[7, 3] = np.nan
    with pytest.raises(LatentGymError, match="row 7, column 3"):
        RidgeProbe().fit(broken, y, groups)
    with pytest.raises(LatentGymError, match="float16"):
        RidgeProbe().fit(np.where(broken == broken, x, np.inf).astype(np.float16), y, groups)
    with pytest.raises(LatentGymError, match="10 features and 3 targets"):
        RidgeProbe().partial_fit(x, y, groups).partial_fit(x[:, :4], y, groups)
    with pytest.raises(LatentGymError, match="ascending"):
        RidgeProbe([1.0, 0.1])
    with pytest.raises(LatentGymError, match="not fitted"):
        RidgeProbe().predict(x)
    with pytest.raises(LatentGymError, match="at least 2 rows"):
        RidgeProbe([1.0]).fit(x[:1], y[:1])
    with pytest.raises(LatentGymError, match="every target column is constant"):
        RidgeProbe().fit(x, y, groups).score(x, np.ones_like(y))


def test_same_bits_twice() -> None:
    x, y, groups = problem(2, 300, 50)
    first, second = (RidgeProbe(LAMBDAS).fit(x, y, groups).predict(x) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees_with_cpu() -> None:
    x, y, groups = problem(2, 3000, 300)
    cpu = RidgeProbe(LAMBDAS, device="cpu").fit(x, y, groups)
    gpu = RidgeProbe(LAMBDAS, device="cuda").fit(x, y, groups)
    assert cpu.lambda_ == gpu.lambda_
    np.testing.assert_allclose(cpu.predict(x), gpu.predict(x), rtol=1e-6)
