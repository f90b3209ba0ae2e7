from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from latentgym.encoders import load_encoder
from latentgym.envs.recording import record
from latentgym.errors import LatentGymError
from latentgym.policies import LearnedExpert, load_policy, train_policy
from latentgym.rollouts import evaluate

REACH = "latentgym/TabletopReach-v0"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("learned")
    data = record(REACH, root / "data", episodes=8, policy="expert", image_size=32)
    return train_policy(data, load_encoder("state"), steps=100, history=2).save(root / "policy")


def test_a_trained_policy_demonstrates(place: Path, tmp_path: Path) -> None:
    options = {"episodes": 3, "image_size": 32, "seed": 1, "expert": LearnedExpert(place)}
    data = record(REACH, tmp_path / "one", policy="expert", **options)  # type: ignore[arg-type]
    assert set(data.policies) == {"expert"} and data.provenance.settings["expert"].startswith("policy (")
    records = evaluate(REACH, load_policy(place), [int(seed) for seed in data.seeds], stop_at_success=False).records
    for index, found in enumerate(records):
        episode = data.episode(index)
        assert found.reward == pytest.approx(float(episode.reward.sum()), abs=1e-4)
        np.testing.assert_array_equal(episode.action, episode.expert_action)
    again = record(REACH, tmp_path / "two", policy="expert", num_envs=2, **options)  # type: ignore[arg-type]
    for index in range(3):
        np.testing.assert_array_equal(data.episode(index).action, again.episode(index).action)


def test_it_corrects_noise_and_belongs_to_its_environment(place: Path, tmp_path: Path) -> None:
    data = record(REACH, tmp_path / "noisy", episodes=1, image_size=32, expert=LearnedExpert(place))
    episode = data.episode(0)
    assert episode.expert_action is not None and not np.array_equal(episode.action, episode.expert_action)
    with pytest.raises(LatentGymError, match="TabletopPush"):
        record("latentgym/TabletopPush-v0", tmp_path / "other", episodes=1, expert=LearnedExpert(place))
    with pytest.raises(LatentGymError, match="there is no policy"):
        LearnedExpert(tmp_path / "nothing")
    with pytest.raises(LatentGymError, match="begun with another configuration"):
        record(REACH, tmp_path / "noisy", episodes=1, image_size=32)
