"""Rollouts with worker processes: equal to those in this process, whatever happens to the workers."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_policies import Faulty, Nowhere, Slanted, SlowToOpen, Wanderer

from latentgym.encoders import load_encoder
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.envs.recording import record
from latentgym.errors import LatentGymError
from latentgym.policies import CheckpointedPolicy, CloningPolicy, ExpertPolicy, Policy, train_policy
from latentgym.rollouts import evaluate, rollout_seeds
from latentgym.rollouts.evaluate import _pickled

REACH = "latentgym/TabletopReach-v0"
CLOCK = "latentgym-tests/Clock-v0"
WALK = "latentgym-tests/Walk-v0"
BOTH = pytest.mark.parametrize("inference", ["main", "workers"])


class AtOnce(Policy):
    """A policy that serves all its rows at once, as other people's do; counts the steps of the episode."""

    name, needs_pixels = "at once", False

    def reset(self, mask: np.ndarray, seeds: Sequence[int] | None = None) -> None:
        self.steps = np.where(mask, 0, getattr(self, "steps", np.zeros(len(mask))))

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        self.steps = self.steps + 1
        actions = np.stack([np.sin(self.steps), np.cos(0.3 * self.steps)], axis=1)
        return np.asarray(actions, np.float32)


class Killer:
    """A progress callback that kills -9 a worker, each once, when so many episodes are done."""

    def __init__(self, points: Sequence[int], seed: int) -> None:
        self.points, self.chance, self.killed = set(points), random.Random(seed), list[int]()

    def __call__(self, done: int, total: int) -> None:
        if done in self.points:
            alive = [child.pid for child in multiprocessing.active_children() if child.pid not in self.killed]
            pid = self.chance.choice(alive)
            assert pid is not None
            self.killed.append(pid)
            time.sleep(self.chance.uniform(0, 0.01))
            os.kill(pid, signal.SIGKILL)


@BOTH
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_short_successes_and_late_failures_are_counted_alike(workers: int, inference: str) -> None:
    evaluation = evaluate(CLOCK, Wanderer(), range(61), workers=workers, batch_size=4, inference=inference)
    assert [episode.seed for episode in evaluation.records] == list(range(61))
    for episode in evaluation.records:
        time_to_success = 1 + episode.seed % 3 if episode.seed % 2 == 0 else None
        assert (episode.success, episode.time_to_success) == (time_to_success is not None, time_to_success)
        assert episode.steps == (time_to_success or 10 + episode.seed % 5)
    assert evaluation.summary.successes == 31


@BOTH
def test_states_and_success_are_the_same_bits_for_every_number_of_workers(inference: str) -> None:
    policy = Wanderer()
    here = evaluate(WALK, policy, range(40), batch_size=4, per_step=True)
    assert policy.sizes == {4}  # short batches are filled up
    assert 0 < here.summary.successes < 40
    for workers in (1, 2, 5):
        spread = evaluate(
            WALK, Wanderer(), range(40), workers=workers, batch_size=4, per_step=True, inference=inference
        )
        assert spread.records == here.records
        timing = spread.timing
        assert timing is not None
        assert timing.steps == sum(episode.steps for episode in here.records) <= timing.batches * timing.batch_size
        assert timing.policy_latency_ms is not None
        for episodes in (here, spread):
            trace = episodes.records[0].trace
            assert trace is not None
            assert len(trace.state) == len(trace.action) + 1 == len(trace.reward) + 1
            assert len(trace.policy_latency_s) == here.records[0].steps


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return record(REACH, tmp_path_factory.mktemp("rollouts") / "reach", episodes=8, seed=0)


@pytest.mark.parametrize("inference", ["main", "auto"])
@pytest.mark.parametrize("head", ["mlp", "flow"])
def test_a_frozen_encoder_acts_alike_for_every_number_of_workers(data: Any, head: str, inference: str) -> None:
    policy = train_policy(data, load_encoder("random"), head=head, steps=20, hidden=(32,))
    seeds = rollout_seeds(1, REACH, 11)
    short: dict[str, Any] = {"env_options": {"horizon": 10}, "batch_size": 3, "per_step": True}
    here = evaluate(REACH, policy, seeds, **short)
    for workers in (1, 2, 5):
        spread = evaluate(REACH, policy, seeds, workers=workers, inference=inference, **short)
        assert spread.records == here.records
    assert (_pickled(policy, inference) is None) == (inference == "main")  # a small encoder is copied


def test_workers_open_copies_of_what_transformers_made(data: Any, tmp_path: Path) -> None:
    ensure_torchvision()
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(tmp_path / "encoder")
    policy = train_policy(data, load_encoder(tmp_path / "encoder"), steps=2, hidden=(8,))
    short: dict[str, Any] = {"env_options": {"horizon": 4}, "batch_size": 2}
    here = evaluate(REACH, policy, range(3), **short)
    assert evaluate(REACH, policy, range(3), workers=1, inference="workers", **short).records == here.records


def test_experts_act_beside_the_simulator() -> None:
    seeds = rollout_seeds(0, REACH, 5)
    here = evaluate(REACH, ExpertPolicy(), seeds)
    assert here.summary.success_rate == 1
    assert evaluate(REACH, ExpertPolicy(), seeds, workers=2).records == here.records


def test_policies_that_serve_all_rows_at_once_are_copied() -> None:
    here = evaluate(WALK, AtOnce(), range(12), batch_size=4, per_step=True)
    assert evaluate(WALK, AtOnce(), range(12), workers=2, batch_size=4, per_step=True).records == here.records
    trace = here.records[5].trace
    assert trace is not None
    assert trace.action[2] == pytest.approx([np.sin(3), np.cos(0.9)])


@BOTH
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_workers_lose_nothing(seed: int, inference: str) -> None:
    slow: dict[str, Any] = {"env_options": {"step_s": 0.002}, "batch_size": 3, "per_step": True}
    here = evaluate(WALK, Wanderer(), range(60), **slow)
    chance = random.Random(seed)
    killer = Killer([chance.randint(*between) for between in ((4, 14), (22, 32), (40, 48))], seed)
    spread = evaluate(WALK, Wanderer(), range(60), workers=2, progress=killer, inference=inference, **slow)
    assert spread.records == here.records
    assert spread.timing is not None
    assert spread.timing.restarts == len(killer.killed) == 3


@BOTH
def test_workers_that_die_at_the_start_are_replaced_and_given_up_in_the_end(tmp_path: Path, inference: str) -> None:
    options = {"folder": str(tmp_path), "faults": {"start": "kill once"}}
    expected = evaluate(WALK, Wanderer(), range(4), batch_size=2)
    one: dict[str, Any] = {"workers": 1, "inference": inference}
    spread = evaluate(WALK, Wanderer(), range(4), batch_size=2, env_options=options, **one)
    assert spread.records == expected.records
    with pytest.raises(LatentGymError, match=r"keep dying \(its worker process died by signal 9\)"):
        evaluate(WALK, Wanderer(), range(4), env_options=options | {"faults": {"start": "kill"}}, **one)


@BOTH
def test_crashed_and_hung_episodes_are_repeated(tmp_path: Path, inference: str) -> None:
    faults = {"3": "kill once", "5": "hang once", "8": "raise once"}
    options = {"folder": str(tmp_path), "faults": faults}
    expected = evaluate(WALK, Wanderer(), range(12), batch_size=2, per_step=True)
    spread = evaluate(
        WALK, Wanderer(), range(12), workers=2, batch_size=2, per_step=True, env_options=options, step_timeout_s=4,
        inference=inference,
    )  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"3", "5", "8"}
    assert spread.records == expected.records
    assert spread.timing is not None
    assert spread.timing.restarts == 2


@BOTH
def test_an_episode_that_crashes_twice_is_reported(tmp_path: Path, inference: str) -> None:
    faults = {"2": "kill", "7": "raise"}
    options = {"folder": str(tmp_path), "faults": faults}
    expected = evaluate(WALK, Wanderer(), range(12), batch_size=2)
    spread = evaluate(WALK, Wanderer(), range(12), workers=2, batch_size=2, env_options=options, inference=inference)
    assert [episode.seed for episode in spread.records] == list(range(12))
    for episode, same in zip(spread.records, expected.records, strict=True):
        if str(episode.seed) not in faults:
            assert episode == same
        else:
            assert (episode.success, episode.steps) == (False, 0)
    assert "died by signal 9" in str(spread.records[2].error)
    assert spread.records[7].error == "RuntimeError('the simulator is unstable')"
    assert (spread.summary.crashed, spread.summary.episodes) == (2, 12)
    assert "2 crashed twice" in spread.describe()


def test_an_exception_of_the_simulator_is_treated_alike_in_this_process(tmp_path: Path) -> None:
    options = {"folder": str(tmp_path), "faults": {"1": "raise", "3": "raise once"}}
    expected = evaluate(WALK, Wanderer(), range(6), batch_size=2)
    here = evaluate(WALK, Wanderer(), range(6), batch_size=2, env_options=options)
    assert [episode for episode in here.records if episode.error is None] == [
        episode for episode in expected.records if episode.seed != 1
    ]
    assert here.records[1].error is not None


@BOTH
def test_videos_are_the_same_with_workers(tmp_path: Path, inference: str) -> None:
    films: dict[str, Any] = {"batch_size": 3, "videos": (2, 3)}
    here = evaluate(CLOCK, Wanderer(), range(30), video_dir=tmp_path / "here", **films)
    films["inference"] = inference
    spread = evaluate(CLOCK, Wanderer(), range(30), workers=2, video_dir=tmp_path / "spread", **films)
    names = ["success-0.mp4", "success-2.mp4", "failure-1.mp4", "failure-3.mp4", "failure-5.mp4"]
    assert [path.name for path in here.videos] == [path.name for path in spread.videos] == names
    for first, second in zip(here.videos, spread.videos, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert {path.name for path in (tmp_path / "spread").iterdir()} == set(names)


@BOTH
def test_workers_end_and_memory_is_freed(inference: str) -> None:
    before = set(Path("/dev/shm").glob("psm_*")) if Path("/dev/shm").is_dir() else set()
    evaluate(CLOCK, Wanderer(), range(6), workers=2, inference=inference)
    with pytest.raises(LatentGymError, match="NaN"):
        evaluate(CLOCK, Nowhere(), range(6), workers=2, inference=inference)
    deadline = time.monotonic() + 5
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()
    if before or Path("/dev/shm").is_dir():
        assert set(Path("/dev/shm").glob("psm_*")) <= before


def test_errors_of_workers_arrive(data: Any) -> None:
    with pytest.raises(LatentGymError, match="did you mean 'latentgym/TabletopReach-v0'"):
        evaluate("latentgym/TabletopReech-v0", ExpertPolicy(), range(2), workers=2)
    policy: CheckpointedPolicy = train_policy(data, load_encoder("state"), steps=2)
    with pytest.raises(LatentGymError, match="does not fit environment"):
        evaluate("latentgym/TabletopPush-v0", policy, range(2), workers=1)
    for inference in ("main", "workers"):
        with pytest.raises(LatentGymError, match=r"NaN or infinite action.*step 2"):
            evaluate(CLOCK, Nowhere(), range(2), workers=1, stop_at_success=False, inference=inference)


def test_an_exception_of_a_copied_policy_arrives() -> None:
    with pytest.raises(LatentGymError, match=r"'wanderer' failed: ZeroDivisionError\('no way to go'\)"):
        evaluate(CLOCK, Faulty(), range(4), workers=2, stop_at_success=False, inference="workers")
    with pytest.raises(ZeroDivisionError):
        evaluate(CLOCK, Faulty(), range(4), workers=2, stop_at_success=False, inference="main")


def test_policies_that_cannot_be_pickled_act_in_this_process(data: Any) -> None:
    policy = train_policy(data, load_encoder("random"), steps=2, hidden=(8,))
    policy.facts["why not"] = lambda: None
    short: dict[str, Any] = {"env_options": {"horizon": 4}, "workers": 1}
    assert evaluate(REACH, policy, range(2), **short).summary.episodes == 2
    with pytest.raises(LatentGymError, match=r"cannot be copied.*use inference='main'"):
        evaluate(REACH, policy, range(2), inference="workers", **short)


def test_classes_that_workers_cannot_import_act_in_this_process(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Typed(CloningPolicy):
        """As if typed at a prompt."""

    policy = train_policy(data, load_encoder("random"), steps=2, hidden=(8,))
    Typed.__module__, Typed.__qualname__ = "__main__", "Typed"
    monkeypatch.setattr(sys.modules["__main__"], "Typed", Typed, raising=False)
    policy.__class__ = Typed
    short: dict[str, Any] = {"env_options": {"horizon": 4}, "workers": 1}
    assert evaluate(REACH, policy, range(2), **short).summary.episodes == 2
    with pytest.raises(LatentGymError, match=r"cannot be opened in a worker process: AttributeError.*inference='main'"):
        evaluate(REACH, policy, range(2), inference="workers", **short)


def test_a_policy_may_take_longer_to_open_than_a_step_may() -> None:
    here = evaluate(WALK, SlowToOpen(), range(4), batch_size=2)
    spread = evaluate(WALK, SlowToOpen(), range(4), batch_size=2, workers=2, inference="workers", step_timeout_s=1.5)
    assert spread.records == here.records
    assert spread.timing is not None
    assert spread.timing.restarts == 0


def test_a_policy_that_minds_its_place_gets_smaller_batches_everywhere() -> None:
    here = evaluate(WALK, Slanted(), range(6), batch_size=1, per_step=True)
    with pytest.warns(UserWarning, match="served in batches of 1"):
        spread = evaluate(WALK, Slanted(), range(6), batch_size=4, workers=2, inference="workers", per_step=True)
    assert spread.records == here.records
    assert spread.timing is not None
    assert spread.timing.batch_size == 1
