from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentgym.encoders import FeatureCache, load_encoder
from latentgym.encoders.contract import Encoder
from latentgym.envs import make_env
from latentgym.errors import LatentGymError
from latentgym.policies import CloningPolicy, train_policy
from latentgym.policies.demonstrations import cloning_target, demonstration_episodes
from latentgym.trajectories import Dataset, split_episodes

SHORT = {"steps": 60, "batch_size": 64, "hidden": (32, 32)}


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return load_encoder("random")


@pytest.fixture(scope="session")
def policy(dataset: Dataset, encoder: Encoder) -> CloningPolicy:
    return train_policy(dataset, encoder, **SHORT)  # type: ignore[arg-type]


def replay(policy: CloningPolicy, dataset: Dataset, indices: list[int], rows: int) -> list[np.ndarray]:
    """Actions in closed loop on recorded observations, episodes in the first rows of a batch."""
    episodes = [dataset.episode(index) for index in indices]
    policy.reset(np.ones(rows, bool))
    actions = []
    for step in range(min(len(episode) for episode in episodes)):
        observation = {
            "pixels": np.zeros((rows, 64, 64, 3), np.uint8),
            "state": np.zeros((rows, episodes[0].state.shape[1]), np.float32),
        }
        for row, episode in enumerate(episodes):
            observation["pixels"][row] = episode.frames["pixels"][step]
            observation["state"][row] = episode.state[step]
        actions.append(policy.act(observation)[: len(episodes)])
    return list(np.stack(actions, axis=1))


def test_equal_seeds_give_equal_bits(dataset: Dataset, encoder: Encoder, policy: CloningPolicy) -> None:
    again = train_policy(dataset, encoder, **SHORT)  # type: ignore[arg-type]
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in policy.tensors().items())
    assert again.cloning_r2 == policy.cloning_r2
    other = train_policy(dataset, encoder, seed=1, **SHORT)  # type: ignore[arg-type]
    assert not torch.equal(other.head.network[0].weight, policy.head.network[0].weight)


def test_training_does_not_touch_global_randomness(dataset: Dataset) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_policy(dataset, load_encoder("state"), steps=3)
    assert torch.equal(torch.rand(3), expected)


def test_the_cache_changes_nothing(dataset: Dataset, encoder: Encoder, policy: CloningPolicy, tmp_path: Path) -> None:
    cached = train_policy(dataset, encoder, cache=FeatureCache(tmp_path), **SHORT)  # type: ignore[arg-type]
    assert all(torch.equal(tensor, cached.tensors()[name]) for name, tensor in policy.tensors().items())


def test_closed_loop_on_recorded_frames_gives_the_scored_predictions(dataset: Dataset, policy: CloningPolicy) -> None:
    held_out = list(policy.score.episodes)
    actions = replay(policy, dataset, held_out, rows=6)
    for place, index in enumerate(held_out):
        error = ((actions[place] - cloning_target(dataset.episode(index, ()))) ** 2).sum(axis=0)
        assert error == pytest.approx(policy.score.squared_error[place], rel=1e-3)


def test_a_reset_row_forgets_and_the_others_do_not(dataset: Dataset, policy: CloningPolicy) -> None:
    index = policy.score.episodes[0]
    frames = dataset.episode(index).frames["pixels"]
    fresh = replay(policy, dataset, [index], rows=2)[0]
    policy.reset(np.ones(2, bool))
    for step in range(3):
        policy.act({"pixels": np.stack([frames[step + 9], frames[step]])})
    policy.reset(np.array([True, False]))
    restarted = policy.act({"pixels": np.stack([frames[0], frames[3]])})
    assert restarted[0] == pytest.approx(fresh[0], abs=1e-5)
    assert restarted[1] == pytest.approx(fresh[3], abs=1e-5)


def test_state_is_clonable(dataset: Dataset) -> None:
    policy = train_policy(dataset, load_encoder("state"), steps=300)
    assert policy.cloning_r2 is not None and policy.cloning_r2 > 0.8
    assert not policy.needs_pixels
    row = policy.rows()[0]
    assert (row.metric, row.readout, row.dimension, row.value) == ("cloning_r2", "policy", "macro", policy.cloning_r2)


def test_only_training_demonstrations_are_used(dataset: Dataset, policy: CloningPolicy) -> None:
    split = split_episodes(dataset)
    assert set(policy.facts["demonstrations"]) == set(demonstration_episodes(dataset, split.train))
    assert set(policy.score.episodes) == set(demonstration_episodes(dataset, split.test))
    fewer = train_policy(dataset, load_encoder("state"), steps=2, demonstrations=4)
    assert len(fewer.facts["demonstrations"]) == 4


def test_components_project_and_are_left_out_where_they_save_nothing(dataset: Dataset, encoder: Encoder) -> None:
    projected = train_policy(dataset, encoder, components=16, **SHORT)  # type: ignore[arg-type]
    assert projected.head.network[0].in_features == 3 * 16
    axes = projected.head.projection
    assert (axes.T @ axes).fill_diagonal_(0).abs().max() < 1e-4 * (axes.T @ axes).diag().min()
    state = train_policy(dataset, load_encoder("state"), steps=2, components=64)
    assert state.head.projection.shape[1] == 0


def test_actions_stay_inside_their_range(dataset: Dataset, policy: CloningPolicy) -> None:
    policy.reset(np.ones(4, bool))
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    assert (np.abs(policy.act({"pixels": noise})) <= 1).all()


def test_an_environment_that_differs_is_refused(policy: CloningPolicy) -> None:
    with pytest.raises(LatentGymError, match="trained on 'latentgym/TabletopReach-v0'"):
        policy.bind([make_env("latentgym/TabletopPush-v0", pixels=False)])
    moving = make_env("latentgym/TabletopReach-v0", pixels=False, distractor="moving")
    with pytest.raises(LatentGymError, match="distractor: trained on 'none', found 'moving'"):
        policy.bind([moving])
    policy.bind([moving], deliberate={"distractor"})


@pytest.mark.parametrize("option", ["steps", "history", "batch_size", "components"])
def test_numbers_below_one_are_refused(dataset: Dataset, option: str) -> None:
    with pytest.raises(LatentGymError, match="at least 1"):
        train_policy(dataset, load_encoder("state"), **{option: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": (0,)},
        {"learning_rate": -1.0},
        {"head": "flow", "head_options": {"integration_steps": 2.5}},
        {"head": "inverse_dynamics", "condition": "instruction", "head_options": {"proposal": "goal"}},
    ],
)
def test_options_that_do_not_fit_are_refused_before_training(dataset: Dataset, options: dict[str, Any]) -> None:
    with pytest.raises(LatentGymError, match=r"positive|whole number|condition='goal'"):
        train_policy(dataset, load_encoder("state"), **{"instruction_encoder": "words", "steps": 10**9, **options})


def test_divergence_is_an_error(dataset: Dataset) -> None:
    with pytest.raises(LatentGymError, match="diverged"):
        train_policy(dataset, load_encoder("state"), steps=30, learning_rate=1e30)
