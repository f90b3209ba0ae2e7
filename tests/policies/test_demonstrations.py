from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import r2_score

from latentgym.errors import LatentGymError
from latentgym.policies.demonstrations import (
    CloningScore,
    choose_demonstrations,
    cloning_target,
    demonstration_episodes,
    history_indices,
)
from latentgym.trajectories import Dataset


def score_of(seed: int = 0) -> tuple[CloningScore, list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    targets = [np.float32(rng.normal(size=(n, 3)) + 100) for n in (5, 8, 11, 4)]
    for target in targets:
        target[:, 2] = 0.25
    predictions = [np.float32(target + 0.5 * rng.normal(size=target.shape)) for target in targets]
    return CloningScore.of(("x", "y", "z"), range(4), targets, predictions, [99.0, 101.0, 0.25]), targets, predictions


def test_score_is_r2_with_the_test_mean_over_dimensions_that_vary() -> None:
    score, targets, predictions = score_of()
    expected = r2_score(np.concatenate(targets), np.concatenate(predictions), multioutput="raw_values")[:2]
    assert score.dimension_r2()[:2] == pytest.approx(expected, rel=1e-6)
    assert np.isnan(score.dimension_r2()[2])
    assert score.value == pytest.approx(expected.mean(), rel=1e-6)


def test_weights_repeat_whole_episodes() -> None:
    score, targets, predictions = score_of()
    picked = [0, 2, 2, 3]
    expected = r2_score(
        np.concatenate([targets[i] for i in picked]),
        np.concatenate([predictions[i] for i in picked]),
        multioutput="raw_values",
    )
    assert score.dimension_r2([1, 0, 2, 1])[:2] == pytest.approx(expected[:2], rel=1e-6)


def test_replicates_and_rows() -> None:
    score, _, _ = score_of()
    replicates = score.replicates(300)
    assert np.array_equal(replicates, score.replicates(300))
    assert np.isfinite(replicates).mean() > 0.99
    rows = score.rows(env="e", encoder="c", family="f")
    assert [row.dimension for row in rows] == ["macro", "x", "y"]
    assert rows[0].low is not None and rows[0].value is not None and rows[0].high is not None
    assert rows[0].low < rows[0].value < rows[0].high
    assert rows[0].n == 4


def test_a_score_without_varying_dimensions_is_none() -> None:
    target = [np.ones((3, 1), np.float32)] * 2
    score = CloningScore.of(("x",), range(2), target, target, [1.0])
    assert score.value is None
    assert score.rows(env="e", encoder="c", family="f")[0].value is None


def test_score_survives_json() -> None:
    score, _, _ = score_of()
    again = CloningScore.from_dict(score.to_dict())
    assert again.value == score.value
    assert again.to_dict() == score.to_dict()


def test_history_repeats_the_first_row_and_stays_within_its_episode() -> None:
    assert history_indices([3, 2], 2).tolist() == [[0, 0], [0, 1], [1, 2], [3, 3], [3, 4]]


def test_demonstrations_leave_out_random_episodes(dataset: Dataset) -> None:
    chosen = demonstration_episodes(dataset, range(len(dataset)))
    assert len(chosen) == 15
    assert all(dataset.policies[index] != "random" for index in chosen)


def test_fewer_demonstrations_are_a_subset_of_more(dataset: Dataset) -> None:
    every = range(len(dataset))
    nested = [set(choose_demonstrations(dataset, every, count, seed=3)) for count in (2, 5, 9)]
    assert nested[0] < nested[1] < nested[2]
    assert nested[1] != set(choose_demonstrations(dataset, every, 5, seed=4))


@pytest.mark.parametrize("count", [0, 16])
def test_a_number_of_demonstrations_that_is_not_there_is_refused(dataset: Dataset, count: int) -> None:
    with pytest.raises(LatentGymError, match="expected 1 to 15 demonstrations"):
        choose_demonstrations(dataset, range(len(dataset)), count, seed=0)


def test_random_episodes_alone_cannot_be_cloned(dataset: Dataset) -> None:
    random = [index for index, policy in enumerate(dataset.policies) if policy == "random"]
    with pytest.raises(LatentGymError, match="no demonstrations"):
        demonstration_episodes(dataset, random)


def test_the_target_is_the_expert_not_the_noise(dataset: Dataset) -> None:
    episode = dataset.episode(demonstration_episodes(dataset, range(len(dataset)))[0], ())
    assert episode.expert_action is not None
    assert np.array_equal(cloning_target(episode), episode.expert_action)
    assert not np.array_equal(cloning_target(episode), episode.action)
