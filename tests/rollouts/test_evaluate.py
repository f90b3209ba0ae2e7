from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    load_policy,
    train_policy,
)
from latentgym.rollouts import Evaluation, evaluate, resolve_policy, rollout_seeds
from latentgym.statistics import wilson_interval

ENV_ID = "latentgym/TabletopReach-v0"
CLOCK_ID = "latentgym-tests/Clock-v0"  # succeeds at once for even seeds, fails late for odd ones


class Watcher(Policy):
    """Keeps the sizes of batches, and acts badly on request."""

    needs_pixels = False

    def __init__(self, action: Any = 0.0, bad_from_step: int = 0) -> None:
        self.sizes: set[int] = set()
        self.action, self.bad_from_step = action, bad_from_step

    def reset(self, mask: np.ndarray, seeds: Sequence[int] | None = None) -> None:
        """Nothing to forget."""

    def act(self, observation: Mapping[str, np.ndarray], rows: np.ndarray | None = None) -> np.ndarray:
        self.sizes.add(len(observation["state"]))
        bad = observation["state"][:, 1:2] >= self.bad_from_step
        return np.where(bad, self.action, 0.0).repeat(2, axis=1).astype(np.float32)


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


def test_records_do_not_depend_on_the_number_of_threads(cloned: CheckpointedPolicy) -> None:
    seeds = rollout_seeds(1, ENV_ID, 5)
    short: dict[str, Any] = {"batch_size": 2, "env_options": {"horizon": 10}}
    counts = []
    here = evaluate(ENV_ID, cloned, seeds, **short, progress=lambda done, total: counts.append((done, total)))
    assert counts == [(done, 5) for done in range(1, 6)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert evaluate(ENV_ID, cloned, seeds, **short).records == here.records
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_an_episode_does_not_depend_on_the_seeds_around_it(cloned: CheckpointedPolicy) -> None:
    seeds = rollout_seeds(2, ENV_ID, 7)
    together = evaluate(ENV_ID, cloned, seeds, batch_size=4, per_step=True).records
    assert evaluate(ENV_ID, cloned, seeds[::-1], batch_size=4, per_step=True).records[::-1] == together


@pytest.mark.parametrize(("policy", "workers"), [("random", 0), ("expert", 0), ("random", 1)])
def test_what_progress_raises_comes_back_as_it_is(policy: str, workers: int) -> None:
    def stop(done: int, whole: int) -> None:
        raise KeyError(f"{done} of {whole}")

    with pytest.raises(KeyError, match="1 of 2"):
        evaluate(ENV_ID, policy, seeds=range(2), workers=workers, env_options={"horizon": 3}, progress=stop)


def test_videos_of_an_earlier_policy_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    first = evaluate(CLOCK_ID, Watcher(), range(12), batch_size=2, video_dir=tmp_path, videos=(3, 3))
    won = next(record.seed for record in first.records if record.success)
    (tmp_path / f"failure-{won}.mp4").write_bytes(b"of an earlier policy")
    again = evaluate(CLOCK_ID, Watcher(), range(12), batch_size=2, video_dir=tmp_path, videos=(3, 3))
    assert again.videos == first.videos


def test_videos_of_the_other_outcome_do_not_stay(tmp_path: Path) -> None:
    for policy in ("expert", "random"):
        found = evaluate(ENV_ID, policy, seeds=range(2), video_dir=tmp_path, env_options={"horizon": 40})
        assert sorted(found.videos) == sorted(tmp_path.iterdir())
    assert [path.name for path in found.videos] == ["failure-0.mp4", "failure-1.mp4"]


def test_videos_without_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LatentGymError, match="videos need frames"):
        evaluate(CLOCK_ID, Watcher(), [0], env_options={"pixels": False}, video_dir=tmp_path)


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
        ({"workers": -1}, "workers must be at least 0"),
        ({"batch_size": 0}, "batch_size at least 1"),
        ({"step_timeout_s": 0.0}, "step_timeout_s"),
        ({"videos": (-1, 0)}, "videos"),
        ({"inference": "worker"}, "did you mean 'workers'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LatentGymError, match=message):
        evaluate(CLOCK_ID, Watcher(), **{"seeds": range(2), **arguments})


def test_a_policy_of_another_environment_is_refused(cloned: CheckpointedPolicy) -> None:
    with pytest.raises(LatentGymError, match="does not fit environment"):
        evaluate("latentgym/TabletopPush-v0", cloned, range(2), batch_size=1)


def test_other_software_than_the_training_data_had_is_said_or_refused(
    cloned: CheckpointedPolicy, tmp_path: Path
) -> None:
    policy: Any = load_policy(cloned.save(tmp_path / "policy"))
    software = policy.training.software
    assert "mujoco" in software.versions
    assert "renderer" in software.gl
    quick: dict[str, Any] = {"batch_size": 1, "env_options": {"horizon": 2}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(ENV_ID, policy, [0], software="refuse", **quick)
    changed = dataclasses.replace(
        software, versions={**software.versions, "mujoco": "3.2.0"}, gl={**software.gl, "renderer": "a graphics card"}
    )
    policy.training = dataclasses.replace(policy.training, software=changed)
    with pytest.warns(UserWarning, match=r"mujoco: trained on 3\.2\.0.*GL renderer: trained on a graphics card"):
        evaluate(ENV_ID, policy, [0], **quick)
    with pytest.raises(LatentGymError, match="install those versions, or record and train again"):
        evaluate(ENV_ID, policy, [0], software="refuse", workers=1, **quick)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(ENV_ID, policy, [0], software="ignore", **quick)


def test_summary_rows_and_file(tmp_path: Path) -> None:
    evaluation = evaluate(CLOCK_ID, Watcher(), range(10), batch_size=4)
    rows = {row.metric: row for row in evaluation.to_rows(encoder="e", family="f", policy_seed=2)}
    rate = rows["success_rate"]
    assert (rate.value, rate.low, rate.high) == (0.5, *wilson_interval(5, 10))
    assert (rate.n, rate.policy_seed, rate.readout) == (10, 2, "policy")
    assert rows["time_to_success_steps"].value == 2
    evaluation.write(tmp_path / "rollouts.json")
    again = Evaluation.read(tmp_path / "rollouts.json")
    assert again == evaluation
    assert again.timing == evaluation.timing
    assert "timing" not in evaluation.to_dict(timing=False)
    assert evaluation.to_dict()["summary"]["successes"] == 5
    assert "5 of 10 succeeded, 50 %" in evaluation.describe()
    (tmp_path / "rollouts.json").write_text("{}")
    with pytest.raises(CorruptDataError, match="no evaluation"):
        Evaluation.read(tmp_path / "rollouts.json")


@pytest.mark.parametrize("records", ["[[]]", '["x"]', "[3]"])
def test_records_of_another_kind_are_damage(records: str, tmp_path: Path) -> None:
    path = tmp_path / "rollouts.json"
    path.write_text(f'{{"env_id": "e", "policy": "p", "records": {records}, "videos": []}}')
    with pytest.raises(CorruptDataError, match="holds no evaluation"):
        Evaluation.read(path)


def test_a_time_to_success_without_success_is_none() -> None:
    evaluation = evaluate(CLOCK_ID, Watcher(), [1, 3], batch_size=2)
    assert evaluation.summary.median_time_to_success is None
    assert "to success" not in evaluation.describe()


def test_a_policy_may_be_named(tmp_path: Path, cloned: CheckpointedPolicy) -> None:
    named = evaluate(ENV_ID, "expert", range(2))
    assert named.records == evaluate(ENV_ID, ExpertPolicy(), range(2)).records
    place = cloned.save(tmp_path / "policy")
    assert evaluate(ENV_ID, place, range(2)).records == evaluate(ENV_ID, cloned, range(2)).records
    with pytest.raises(LatentGymError, match=r"expected a policy, its name or place, .* found int"):
        evaluate(ENV_ID, 3, range(2))


def test_policies_by_name(tmp_path: Path, cloned: CheckpointedPolicy) -> None:
    assert isinstance(resolve_policy("expert"), ExpertPolicy)
    assert isinstance(resolve_policy("random"), RandomPolicy)
    assert resolve_policy(cloned.save(tmp_path / "policy")).name == cloned.name
    with pytest.raises(LatentGymError, match="no policy 'exprt'"):
        resolve_policy("exprt")
