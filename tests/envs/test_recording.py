"""Recording: the same bits however it is run, nothing lost and nothing half-written when it is interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import latentgym
from latentgym.envs import RecordTrajectories, make_env, record
from latentgym.envs.recording import _Recording
from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.seeding import derive_seed
from latentgym.trajectories import Dataset, check_dataset, open_dataset

REACH = "latentgym/TabletopReach-v0"
PUSH = "latentgym/TabletopPush-v0"
OPTIONS = {"horizon": 8}


def small(out: Path, **changes: Any) -> Dataset:
    settings = {"episodes": 4, "seed": 5, "random_fraction": 0.5, "env_options": OPTIONS}
    return record(PUSH, out, **(settings | changes))


def test_episodes_hold_what_the_contract_promises(tmp_path: Path) -> None:
    dataset = small(tmp_path / "data")
    assert dataset.policies == ("noisy-expert", "random", "noisy-expert", "random")
    assert dataset.provenance.versions["mujoco"] and dataset.provenance.gl["renderer"]
    assert "episodes=4" in dataset.provenance.command and dataset.provenance.seed == 5
    for index in range(4):
        episode = dataset.episode(index)
        episode.validate()
        assert len(episode) == 8 and episode.frames["pixels"].shape == (9, 64, 64, 3)
        assert episode.seed == derive_seed(5, "episode", index)
        assert episode.expert_action is not None
        assert episode.random_action.all() == (episode.policy == "random") == episode.random_action.any()
        assert not np.array_equal(episode.action, episode.expert_action)
        assert episode.truncated.tolist() == [False] * 7 + [True] and not episode.terminated.any()


def test_recorded_actions_are_the_executed_ones_and_frames_can_be_rendered_again(tmp_path: Path) -> None:
    dataset = small(tmp_path / "data", env_options={"distractor": "moving", "horizon": 8})
    env = make_env(PUSH, distractor="moving", horizon=8)
    for index in range(4):
        episode = dataset.episode(index)
        observation, _ = env.reset(seed=episode.seed)
        for step, action in enumerate(episode.action):
            np.testing.assert_array_equal(observation["state"], episode.state[step])
            observation, *_ = env.step(action)
        np.testing.assert_array_equal(observation["pixels"], episode.frames["pixels"][-1])
        for frame, state in zip(episode.frames["pixels"], episode.sim_state, strict=True):
            np.testing.assert_array_equal(env.get_wrapper_attr("set_sim_state")(state)["pixels"], frame)


@pytest.mark.slow
def test_same_bits_for_any_number_of_processes(tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    one = small(tmp_path / "one")
    two = small(tmp_path / "two", num_envs=2, progress=lambda done, total: reports.append((done, total)))
    assert one.key == two.key
    assert [one.episode_key(index) for index in range(4)] == [two.episode_key(index) for index in range(4)]
    assert reports == [(count, 4) for count in range(5)]
    assert small(tmp_path / "other", seed=6).key != one.key


def test_resumes_without_recording_twice(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_at_two(done: int, total: int) -> None:
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        small(tmp_path / "data", progress=stop_at_two)
    with pytest.raises(LatentGymError, match="unfinished"):
        open_dataset(tmp_path / "data")
    finished = {folder: folder.stat().st_mtime_ns for folder in (tmp_path / "data" / "episodes").glob("*/*")}
    reports: list[tuple[int, int]] = []
    resumed = small(tmp_path / "data", progress=lambda done, total: reports.append((done, total)))
    assert reports == [(2, 4), (3, 4), (4, 4)]
    assert finished and all(path.stat().st_mtime_ns == changed for path, changed in finished.items())
    assert resumed.key == small(tmp_path / "whole").key


SCRIPT = """
import os, signal, sys, time
from latentgym.envs import record

def report(done, total):
    if done == 3:
        {act}

if __name__ == "__main__":
    # A process started in the background of a shell script ignores interrupts; this one must not inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        record("latentgym/TabletopReach-v0", sys.argv[1], episodes=400, num_envs={num_envs}, progress=report)
    except KeyboardInterrupt:
        print("interrupted")
    except Exception as error:
        print(type(error).__name__, error)
"""
KILL_A_WORKER = (
    "import multiprocessing; os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL); time.sleep(0.5)"
)


def run_script(tmp_path: Path, act: str, num_envs: int) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(act=act, num_envs=num_envs))
    return subprocess.run(
        [sys.executable, str(script), str(tmp_path / "data")],
        env=os.environ | {"PYTHONPATH": str(Path(latentgym.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_kept_is_whole(data: Path) -> None:
    kept = [entry for entry in (data / "episodes").iterdir() if not entry.name.startswith(".")]
    assert 3 <= len(kept) < 400
    assert not list(data.rglob("*.partial"))
    problems = check_dataset(data)
    assert len(problems) == 1 and "unfinished" in problems[0]


@pytest.mark.slow
@pytest.mark.parametrize("num_envs", [1, 2])
def test_an_interrupt_keeps_what_is_finished(tmp_path: Path, num_envs: int) -> None:
    result = run_script(tmp_path, "os.kill(os.getpid(), signal.SIGINT)", num_envs)
    assert result.stdout.strip() == "interrupted", result.stderr
    assert_kept_is_whole(tmp_path / "data")


@pytest.mark.slow
def test_a_dead_worker_is_one_clear_error(tmp_path: Path) -> None:
    result = run_script(tmp_path, KILL_A_WORKER, 2)
    assert "LatentGymError a worker process died" in result.stdout, result.stdout + result.stderr
    kept = [entry for entry in (tmp_path / "data" / "episodes").iterdir() if not entry.name.startswith(".")]
    assert len(kept) >= 3


@pytest.mark.slow
def test_an_error_in_a_worker_reaches_the_caller(tmp_path: Path) -> None:
    with pytest.raises(LatentGymError, match="distractor"):
        small(tmp_path / "data", num_envs=2, env_options={"distractor": "wild"})
    assert not (tmp_path / "data").exists()


@given(st.floats(0, 1), st.integers(1, 300))
def test_random_episodes_are_spread_evenly(fraction: float, episodes: int) -> None:
    recording = _Recording(REACH, "expert", 0, fraction, 64, {}, "")
    chosen = np.cumsum([recording.policy_of(index) == "random" for index in range(episodes)])
    assert np.all(np.abs(chosen - fraction * np.arange(1, episodes + 1)) < 1 + 1e-6)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="noisy-expert"):
        small(tmp_path / "data", policy="noisy-exprt")
    for bad in ({"episodes": 0}, {"num_envs": 0}, {"random_fraction": 1.5}, {"random_fraction": float("nan")}):
        with pytest.raises(LatentGymError, match=next(iter(bad))):
            small(tmp_path / "data", **bad)
    with pytest.raises(LatentGymError, match="no expert"):
        record("Reacher-v5", tmp_path / "data", episodes=1)
    assert not (tmp_path / "data").exists()
    small(tmp_path / "data")
    with pytest.raises(LatentGymError, match="another configuration"):
        small(tmp_path / "data", seed=6)


def test_wrapper_writes_finished_episodes_only(tmp_path: Path) -> None:
    def play(env: gymnasium.Env[Any, Any], steps: int, seed: int | None = None) -> None:
        env.reset(seed=seed)
        for _ in range(steps):
            env.step(np.full(3, 2.0, np.float32))

    env = RecordTrajectories(make_env(REACH, horizon=5), tmp_path / "data", policy="mine", seed=1)
    play(env, 3)
    play(env, 5)
    play(env, 5, seed=42)
    play(env, 2)
    env.close()
    dataset = open_dataset(tmp_path / "data")
    assert dataset.policies == ("mine", "mine") and dataset.lengths.tolist() == [5, 5]
    assert [dataset.episode(index, ()).seed for index in range(2)] == [derive_seed(1, "episode", 0), 42]
    assert dataset.episode(0).action.max() == 1.0  # as executed, clipped
    again = RecordTrajectories(make_env(REACH, horizon=5), tmp_path / "data", policy="mine", seed=1)
    play(again, 5)
    assert len(open_dataset(tmp_path / "data")) == 3


def test_wrapper_keeps_annotations_and_refuses_half_of_them(tmp_path: Path) -> None:
    env = RecordTrajectories(make_env(REACH, pixels=False, horizon=2), tmp_path / "data")
    label, action = np.full(3, 0.5, np.float32), np.zeros(3, np.float32)
    env.reset(seed=0)
    for _ in range(2):
        env.annotate(expert_action=label, random=True)
        env.step(action)
    episode = open_dataset(tmp_path / "data").episode(0)
    assert episode.random_action.all() and episode.expert_action is not None
    np.testing.assert_array_equal(episode.expert_action, np.stack([label, label]))
    env.reset(seed=1)
    env.annotate(expert_action=label)
    env.step(action)
    with pytest.raises(LatentGymError, match="every"):
        env.step(action)


def test_wrapper_refuses_nan_and_records_nothing(tmp_path: Path) -> None:
    env = RecordTrajectories(make_env(REACH, pixels=False, horizon=2), tmp_path / "data")
    env.reset(seed=0)
    with pytest.raises(LatentGymError, match="NaN"):
        env.step(np.array([np.nan, 0, 0], np.float32))
    with pytest.raises(LatentGymError, match="no episodes"):
        open_dataset(tmp_path / "data")


def test_a_bare_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LatentGymError, match="EnvContract"):
        RecordTrajectories(gymnasium.make("Reacher-v5"), tmp_path / "data")
