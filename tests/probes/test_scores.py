from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, r2_score

from latentgym.errors import LatentGymError
from latentgym.probes.scores import Estimate, action_scores, pooled_r2, resamples
from latentgym.trajectories import ActionSpec


def case(seed: int = 0, episodes: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    episode = np.repeat(np.arange(episodes), rng.integers(3, 9, episodes))
    target = rng.normal(size=(len(episode), 3)) + 50
    target[:, 2] = np.sign(rng.normal(size=len(episode)))
    prediction = target + rng.normal(size=(2, *target.shape)) * [0.3, 2.0, 0.9]
    return target, prediction, episode


def test_point_scores_equal_scikit_learn(action_spec: ActionSpec) -> None:
    target, prediction, episode = case()
    scores = action_scores(target, prediction, episode, action_spec, resamples("key", "all", 12, 5))
    by_hand = np.mean([r2_score(target, member, multioutput="raw_values") for member in prediction], axis=0)
    for index, name in enumerate(action_spec.names):
        assert scores["r2", name].value == pytest.approx(by_hand[index], abs=1e-10)
        assert scores["clipped_r2", name].value == pytest.approx(
            np.mean([max(r2_score(target[:, index], member[:, index]), 0) for member in prediction]), abs=1e-10
        )
        r = np.mean([np.corrcoef(target[:, index], member[:, index])[0, 1] for member in prediction])
        assert scores["pearson_r", name].value == pytest.approx(r, abs=1e-10)
    assert scores["r2", "macro"].value == pytest.approx(by_hand.mean(), abs=1e-10)
    assert scores["r2", "translation"].value == pytest.approx(by_hand[:2].mean(), abs=1e-10)
    accuracy = np.mean([balanced_accuracy_score(target[:, 2] > 0, member[:, 2] > 0) for member in prediction])
    assert scores["balanced_accuracy", "gripper"].value == pytest.approx(accuracy)
    assert ("r2", "rotation") not in scores


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_each_replicate_is_the_score_of_the_resampled_rows(action_spec: ActionSpec, seed: int) -> None:
    """The sums are sufficient: drawing whole episodes with repetition gives the same R², resample's mean included."""
    target, prediction, episode = case(seed)
    counts = resamples("key", str(seed), 12, 4)
    scores = action_scores(target, prediction, episode, action_spec, counts)
    for index, drawn in enumerate(counts[1:].astype(int)):
        rows = np.concatenate([np.tile(np.flatnonzero(episode == e), n) for e, n in enumerate(drawn)]).astype(int)
        expected = np.mean([r2_score(target[rows, 1], member[rows, 1]) for member in prediction])
        assert scores["r2", "y"].replicates[index] == pytest.approx(expected, abs=1e-9)


def test_pooled_r2_is_scikit_learns_weighted_by_variance() -> None:
    target, prediction, episode = case()
    counts = resamples("key", "pooled", 12, 4)
    found = pooled_r2(target, prediction[0], episode, counts)
    weighted = {"multioutput": "variance_weighted"}
    assert found.value == pytest.approx(r2_score(target, prediction[0], **weighted), abs=1e-10)
    for index, drawn in enumerate(counts[1:].astype(int)):
        rows = np.concatenate([np.tile(np.flatnonzero(episode == e), n) for e, n in enumerate(drawn)]).astype(int)
        expected = r2_score(target[rows], prediction[0][rows], **weighted)
        assert found.replicates[index] == pytest.approx(expected, abs=1e-9)


def test_constant_dimension_is_left_out_and_undefined(action_spec: ActionSpec) -> None:
    target, prediction, episode = case()
    target[:, 0] = np.float32(0.1)
    scores = action_scores(target, prediction, episode, action_spec, resamples("key", "all", 12, 50))
    assert scores["r2", "x"].value is None and scores["r2", "x"].interval == (None, None)
    ys = (scores["r2", "y"].value, scores["r2", "grip"].value)
    assert scores["r2", "macro"].value == pytest.approx(np.mean(ys))  # type: ignore[arg-type]


def test_constant_prediction_has_no_correlation_but_an_r2(action_spec: ActionSpec) -> None:
    target, _, episode = case()
    constant = np.broadcast_to(target.mean(0), target.shape)[None]
    scores = action_scores(target, constant, episode, action_spec, resamples("key", "all", 12, 50))
    assert scores["pearson_r", "macro"].value is None
    assert scores["r2", "macro"].value == pytest.approx(0, abs=1e-9)


def test_one_gripper_class_leaves_the_accuracy_undefined(action_spec: ActionSpec) -> None:
    target, prediction, episode = case()
    target[:, 2] = 1.0
    scores = action_scores(target, prediction, episode, action_spec, resamples("key", "all", 12, 50))
    assert scores["balanced_accuracy", "gripper"].value is None


def test_interval_covers_the_population_r2(action_spec: ActionSpec) -> None:
    """Nominal 95 % coverage of the cluster bootstrap when rows within an episode are not independent."""
    spec = dataclasses.replace(
        action_spec, names=("x",), units=("m",), scale=(1.0,), low=(-1.0,), high=(1.0,), translation=(0,), gripper=()
    )
    rng, covered, episodes, steps, trials = np.random.default_rng(0), 0, 60, 10, 200
    episode = np.repeat(np.arange(episodes), steps)
    truth = 1 - (0.5**2 + 0.5**2) / (1 + 1)
    for trial in range(trials):
        target = rng.normal(size=(episodes, 1, 1)) + rng.normal(size=(episodes, steps, 1))
        error = 0.5 * rng.normal(size=(episodes, 1, 1)) + 0.5 * rng.normal(size=(episodes, steps, 1))
        prediction = (target + error).reshape(1, -1, 1)
        counts = resamples("coverage", str(trial), episodes, 400)
        found = action_scores(target.reshape(-1, 1), prediction, episode, spec, counts)
        low, high = found["r2", "x"].interval
        assert low is not None and high is not None
        covered += low <= truth <= high
    assert 0.89 <= covered / trials <= 0.99


def test_resamples_are_shared_by_encoders_and_differ_by_data_set() -> None:
    assert np.array_equal(resamples("a", "all", 9, 20), resamples("a", "all", 9, 20))
    assert not np.array_equal(resamples("a", "all", 9, 20), resamples("b", "all", 9, 20))
    counts = resamples("a", "all", 9, 20)
    assert (counts.sum(1) == 9).all() and (counts[0] == 1).all()


def test_difference_is_paired() -> None:
    first, second = Estimate(0.5, np.array([0.4, 0.6])), Estimate(0.2, np.array([0.1, 0.3]))
    difference = first - second
    assert difference.value == pytest.approx(0.3)
    np.testing.assert_allclose(difference.replicates, 0.3)
    assert (first - Estimate(None, np.full(2, np.nan))).value is None


def test_no_episode_and_mismatched_rows_are_errors(action_spec: ActionSpec) -> None:
    target, prediction, episode = case()
    with pytest.raises(LatentGymError, match="no test episode"):
        resamples("a", "random_actions", 0, 10)
    with pytest.raises(LatentGymError, match="disagree"):
        action_scores(target[:-1], prediction, episode, action_spec, resamples("a", "all", 12, 5))
