from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from latentgym.envs import make_env
from latentgym.errors import LatentGymError
from latentgym.policies import ConstantPolicy, ExpertPolicy, RandomPolicy
from latentgym.policies.demonstrations import cloning_target
from latentgym.trajectories import Dataset

ENV_ID = "latentgym/TabletopReach-v0"


def test_random_actions_depend_on_the_seed_of_the_row_alone() -> None:
    envs = [make_env(ENV_ID, pixels=False) for _ in range(3)]
    observations = [env.reset(seed=0)[0] for env in envs]
    batch = {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
    policy = RandomPolicy()
    policy.bind(envs)
    policy.reset(np.ones(3, bool), [5, 6, 7])
    first = np.stack([policy.act(batch) for _ in range(4)])
    policy.reset(np.array([True, False, False]), [7, 0, 0])
    again = np.stack([policy.act(batch) for _ in range(4)])
    assert np.array_equal(again[:, 0], first[:, 2])
    assert not np.array_equal(first[:, 0], first[:, 1])
    assert (np.abs(first) <= 1).all()


def test_random_actions_refuse_other_actions(dataset: Dataset) -> None:
    other = dataclasses.replace(dataset.action_spec, scale=(1.0, 1.0, 1.0))
    with pytest.raises(LatentGymError, match="other actions"):
        RandomPolicy(other).bind([make_env(ENV_ID, pixels=False)])


def test_policies_of_the_environment_must_be_bound_first() -> None:
    with pytest.raises(LatentGymError, match="bind"):
        ExpertPolicy().reset(np.ones(2, bool))


def test_the_constant_is_the_mean_target(dataset: Dataset) -> None:
    policy = ConstantPolicy.fit(dataset, [0, 3])
    policy.reset(np.ones(2, bool))
    targets = np.concatenate([cloning_target(dataset.episode(index, ())) for index in (0, 3)])
    assert policy.act({}) == pytest.approx(np.tile(targets.mean(axis=0), (2, 1)), abs=1e-6)


def test_the_constant_belongs_to_its_environment(dataset: Dataset) -> None:
    with pytest.raises(LatentGymError, match="does not fit"):
        ConstantPolicy.fit(dataset, [0]).bind([make_env("latentgym/TabletopPush-v0", pixels=False)])
    with pytest.raises(LatentGymError, match="4 action dimensions"):
        ConstantPolicy(np.zeros(4)).bind([make_env(ENV_ID, pixels=False)])
