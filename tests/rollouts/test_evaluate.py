from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from latentgym.encoders import load_encoder
from latentgym.envs.recording import record
from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.policies import (
    CheckpointedPolicy,
    ConstantPolicy,
    ExpertPolicy,
    Policy,
    RandomPolicy,
    train_policy,
)
from latentgym.rollouts import Evaluation, evaluate, resolve_policy, rollout_seeds
from latentgym.statistics import wilson_interval

ENV_ID = "latentgym/TabletopReach-v0"
CLOCK_ID = "latentgym-tests/Clock-v0"


class Clock(gymnasium.Env[Any, Any]):
    """Succeeds at once for even seeds, and fails late for odd ones; ends with ``terminated`` whatever happened."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-1e6, 1e6, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._seed, self._time = seed or 0, 0
        return np.float32([self._seed, 0]), {"is_success": False}

    def step(self, action: Any) -> Any:
        self._time += 1
        success = self._seed % 2 == 0 and self._time == 1 + self._seed % 3
        over = self._time == 10 + self._seed % 5
        return np.float32([self._seed, self._time]), 1.0, over, False, {"is_success": success}

    def render(self) -> Any:
        return np.full((64, 64, 3), 20 * self._time % 256, np.uint8)


@pytest.fixture(scope="module", autouse=True)
def clock() -> None:
    if CLOCK_ID not in gymnasium.registry:
        gymnasium.register(CLOCK_ID, entry_point=Clock, max_episode_steps=40)


class Watcher(Policy):
    """Keeps what it is shown, and acts badly on request."""

    needs_pixels = False

    def __init__(self, action: Any = 0.0, bad_from_step: int = 0) -> None:
        self.sizes: set[int] = set()
        self.starts: list[list[int]] = []
        self.action, self.bad_from_step, self.calls = action, bad_from_step, 0

    def reset(self, mask: np.ndarray, seeds: Sequence[int] | None = None) -> None:
        self.starts.append(np.flatnonzero(mask).tolist())

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        self.sizes.add(len(observation["proprio"]))
        action = self.action if self.calls >= self.bad_from_step else 0.0
        self.calls += 1
        return np.full((len(observation["proprio"]), 2), action, np.float32)


@pytest.fixture(scope="module")
def cloned(tmp_path_factory: pytest.TempPathFactory) -> CheckpointedPolicy:
    dataset = record(ENV_ID, tmp_path_factory.mktemp("rollouts") / "reach", episodes=8, seed=0)
    return train_policy(dataset, load_encoder("random"), steps=30, hidden=(32,))


def test_every_seed_counts_and_only_is_success_does() -> None:
    watcher = Watcher()
    evaluation = evaluate(CLOCK_ID, watcher, range(61), batch_size=4)
    assert [episode.seed for episode in evaluation.records] == list(range(61))
    for episode in evaluation.records:
        assert episode.success == (episode.seed % 2 == 0)
        time = 1 + episode.seed % 3 if episode.success else None
        assert episode.time_to_success == time
        assert episode.steps == (time or 10 + episode.seed % 5)
        assert episode.reward == episode.steps
    assert evaluation.summary.successes == 31
    # Short successes and long failures share rows, but every batch had one size.
    assert watcher.sizes == {4}


def test_an_episode_may_go_on_after_success() -> None:
    evaluation = evaluate(CLOCK_ID, Watcher(), range(6), batch_size=4, stop_at_success=False)
    assert [r.steps for r in evaluation.records] == [10 + seed % 5 for seed in range(6)]
    assert [r.success for r in evaluation.records] == [True, False] * 3


def test_expert_solves_and_floors_do_not() -> None:
    seeds = rollout_seeds(0, ENV_ID, 10)
    assert evaluate(ENV_ID, ExpertPolicy(), seeds).summary.success_rate == 1
    assert evaluate(ENV_ID, ConstantPolicy(np.zeros(3)), seeds).summary.success_rate == 0
    assert evaluate(ENV_ID, RandomPolicy(), seeds).summary.success_rate <= 0.1


def test_records_do_not_depend_on_the_number_of_workers_or_threads(cloned: CheckpointedPolicy) -> None:
    seeds = rollout_seeds(1, ENV_ID, 13)  # three chunks, the last of one episode
    short: dict[str, Any] = {"batch_size": 2, "env_options": {"horizon": 10}}
    here = evaluate(ENV_ID, cloned, seeds, **short)
    counts = []
    spread = evaluate(
        ENV_ID, cloned, seeds, **short, workers=2, progress=lambda done, total: counts.append((done, total))
    )
    assert spread.records == here.records
    assert counts == [(6, 13), (12, 13), (13, 13)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert evaluate(ENV_ID, cloned, seeds, **short).records == here.records
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_an_episode_does_not_depend_on_the_seeds_around_it(cloned: CheckpointedPolicy) -> None:
    seeds = rollout_seeds(2, ENV_ID, 7)
    together = evaluate(ENV_ID, cloned, seeds, batch_size=4).records
    reversed_ = evaluate(ENV_ID, cloned, seeds[::-1], batch_size=4).records[::-1]
    assert [r.success for r in reversed_] == [r.success for r in together]
    # Another row of the batch may round differently in the last bits.
    assert [r.reward for r in reversed_] == pytest.approx([r.reward for r in together], rel=1e-3)


def test_videos_show_the_first_of_each_outcome(tmp_path: Path) -> None:
    evaluation = evaluate(CLOCK_ID, Watcher(), range(30), batch_size=2, video_dir=tmp_path, videos=(2, 3))
    names = ["success-0.mp4", "success-2.mp4", "failure-1.mp4", "failure-3.mp4", "failure-5.mp4"]
    assert [path.name for path in evaluation.videos] == names
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_trained_settings_are_the_default_and_others_need_intent(tmp_path: Path) -> None:
    options = {"distractor": "static", "horizon": 12}
    dataset = record(ENV_ID, tmp_path / "data", episodes=4, seed=0, env_options=options)
    policy = train_policy(dataset, load_encoder("state"), steps=2)
    evaluation = evaluate(ENV_ID, policy, [0], batch_size=1, stop_at_success=False)
    assert evaluation.records[0].steps == 12
    again = evaluate(ENV_ID, policy, [0], batch_size=1, env_options={"horizon": 7}, stop_at_success=False)
    assert again.records[0].steps == 7
    evaluate(ENV_ID, policy, [0], batch_size=1, env_options={"distractor": "none"})


def test_an_action_that_is_not_finite_is_named() -> None:
    with pytest.raises(LatentGymError, match=r"'policy' returned a NaN or infinite action.*seed 0, step 2"):
        evaluate(CLOCK_ID, Watcher(np.nan, bad_from_step=2), [0, 1], batch_size=1, stop_at_success=False)


def test_an_action_of_the_wrong_shape_is_named() -> None:
    with pytest.raises(LatentGymError, match=r"shape \(2, 2\), expected \(2, 3\)"):
        evaluate(ENV_ID, Watcher(), range(2), batch_size=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": []}, "at least one"),
        ({"seeds": [1, 1]}, "listed once"),
        ({"seeds": [-1]}, "none negative"),
        ({"workers": 0}, "workers and batch_size"),
        ({"batch_size": 0}, "workers and batch_size"),
        ({"videos": (-1, 0)}, "videos"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LatentGymError, match=message):
        evaluate(CLOCK_ID, Watcher(), **{"seeds": range(2), **arguments})


def test_workers_need_a_policy_that_can_be_saved() -> None:
    with pytest.raises(LatentGymError, match="cannot be saved"):
        evaluate(CLOCK_ID, Watcher(), range(2), workers=2)


def test_a_policy_of_another_environment_is_refused(cloned: CheckpointedPolicy) -> None:
    with pytest.raises(LatentGymError, match="does not fit environment"):
        evaluate("latentgym/TabletopPush-v0", cloned, range(2), batch_size=1)


def test_errors_of_workers_arrive() -> None:
    with pytest.raises(LatentGymError, match="did you mean 'latentgym/TabletopReach-v0'"):
        evaluate("latentgym/TabletopReech-v0", ExpertPolicy(), range(2), workers=2)


def test_summary_rows_and_file(tmp_path: Path) -> None:
    evaluation = evaluate(CLOCK_ID, Watcher(), range(10), batch_size=4)
    rows = {row.metric: row for row in evaluation.to_rows(encoder="e", family="f", policy_seed=2)}
    rate = rows["success_rate"]
    assert (rate.value, rate.low, rate.high) == (0.5, *wilson_interval(5, 10))
    assert (rate.n, rate.policy_seed, rate.readout) == (10, 2, "policy")
    assert rows["time_to_success_steps"].value == 2
    evaluation.write(tmp_path / "rollouts.json")
    assert Evaluation.read(tmp_path / "rollouts.json") == evaluation
    assert evaluation.to_dict()["summary"]["successes"] == 5
    assert "5 of 10 succeeded, 50 %" in evaluation.describe()
    (tmp_path / "rollouts.json").write_text("{}")
    with pytest.raises(CorruptDataError, match="no evaluation"):
        Evaluation.read(tmp_path / "rollouts.json")


def test_a_time_to_success_without_success_is_none() -> None:
    evaluation = evaluate(CLOCK_ID, Watcher(), [1, 3], batch_size=2)
    assert evaluation.summary.median_time_to_success is None
    assert "to success" not in evaluation.describe()


def test_policies_by_name(tmp_path: Path, cloned: CheckpointedPolicy) -> None:
    assert isinstance(resolve_policy("expert"), ExpertPolicy)
    assert isinstance(resolve_policy("random"), RandomPolicy)
    assert resolve_policy(cloned.save(tmp_path / "policy")).name == cloned.name
    with pytest.raises(LatentGymError, match="no policy 'exprt'"):
        resolve_policy("exprt")
