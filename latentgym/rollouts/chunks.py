"""The unit of a rollout: a list of seeds, served by a fixed batch of environments, in one process."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from latentgym.envs.contract import contract_of
from latentgym.envs.make import make_env
from latentgym.errors import LatentGymError
from latentgym.policies.contract import Policy
from latentgym.rollouts.video import write_video
from latentgym.seeding import derive_seed


@dataclasses.dataclass(frozen=True)
class EpisodeRecord:
    """One rollout.

    Attributes:
        seed: seed that the environment was reset with.
        success: whether ``is_success`` was true at some step; never read from ``terminated``.
        steps: steps that were run.
        time_to_success: steps up to and including the first success; ``None`` without one.
        reward: sum of rewards over the steps that were run.
    """

    seed: int
    success: bool
    steps: int
    time_to_success: int | None
    reward: float


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """How episodes are run, the same in every process.

    Attributes:
        env_id: environment id.
        env_options: options of ``make_env``.
        batch_size: environments that the policy serves at once, B.
        stop_at_success: whether an episode ends at its first success.
        video_dir: folder for videos, or ``None``.
        videos: successes and failures filmed per chunk.
        deliberate: settings that the caller chose on purpose.
    """

    env_id: str
    env_options: Mapping[str, Any]
    batch_size: int
    stop_at_success: bool
    video_dir: Path | None = None
    videos: tuple[int, int] = (0, 0)
    deliberate: frozenset[str] = frozenset()


@dataclasses.dataclass
class _Row:
    """The episode that one row of the batch is running."""

    seed: int
    steps: int = 0
    first_success: int | None = None
    reward: float = 0.0
    frames: list[NDArray[np.uint8]] = dataclasses.field(default_factory=list)


class ChunkRunner:
    """Runs chunks of seeds one after the other on environments that it keeps.

    A chunk depends on its seeds alone: every row starts afresh, and rows take the chunk's next seed in the order in
    which they come free, which the simulation determines.

    Args:
        rollouts: how episodes are run.
        policy: the policy.
    """

    def __init__(self, rollouts: Rollouts, policy: Policy) -> None:
        self._rollouts, self._policy = rollouts, policy
        self._envs: list[gymnasium.Env[Any, Any]] = []
        self._observation: dict[str, NDArray[Any]] = {}

    def __enter__(self) -> ChunkRunner:
        pixels = self._policy.needs_pixels or self._filming
        options = {"pixels": pixels, **self._rollouts.env_options}
        with contextlib.ExitStack() as stack:
            for _ in range(self._rollouts.batch_size):
                env = make_env(self._rollouts.env_id, **options)
                stack.callback(env.close)
                self._envs.append(env)
            self._contract = contract_of(self._envs[0])
            self._policy.bind(self._envs, self._rollouts.deliberate)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def _filming(self) -> bool:
        return self._rollouts.video_dir is not None and max(self._rollouts.videos) > 0

    def run(self, seeds: Sequence[int], progress: Callable[[int], None] | None = None) -> list[EpisodeRecord]:
        """Run every seed once; records come back in the order of ``seeds``.

        Args:
            seeds: seeds of the chunk.
            progress: called with 1 after each episode.

        Raises:
            LatentGymError: if the policy returns a wrong shape or an action that is not finite.
        """
        waiting, done = list(reversed(seeds)), dict[int, EpisodeRecord]()
        rows: list[_Row | None] = [None] * len(self._envs)
        quota = list(self._rollouts.videos) if self._filming else [0, 0]
        while True:
            started = self._start(rows, waiting)
            if all(row is None for row in rows):
                return [done[seed] for seed in seeds]
            if started.any():
                seeds_of_rows = [0 if row is None else derive_seed(row.seed, "policy") for row in rows]
                self._policy.reset(started, seeds_of_rows)
            actions = self._actions(rows)
            for index, row in enumerate(rows):
                if row is not None and self._step(index, row, actions[index], film=any(quota)):
                    done[row.seed] = self._finish(row, quota)
                    rows[index] = None
                    if progress is not None:
                        progress(1)

    def _start(self, rows: list[_Row | None], waiting: list[int]) -> NDArray[np.bool_]:
        started = np.zeros(len(rows), dtype=np.bool_)
        for index, row in enumerate(rows):
            if row is None and waiting:
                rows[index] = fresh = _Row(waiting.pop())
                observation, _ = self._envs[index].reset(seed=fresh.seed)
                self._observe(index, observation)
                if self._filming:
                    fresh.frames.append(self._frame(index))
                started[index] = True
        return started

    def _observe(self, index: int, observation: Mapping[str, NDArray[Any]]) -> None:
        if not self._observation:
            size = len(self._envs)
            self._observation = {
                key: np.zeros((size, *np.shape(value)), object if isinstance(value, str) else np.asarray(value).dtype)
                for key, value in observation.items()
            }
        for key, value in observation.items():
            self._observation[key][index] = value

    def _frame(self, index: int) -> NDArray[np.uint8]:
        return np.array(self._observation[self._contract.cameras[0]][index])

    def _actions(self, rows: Sequence[_Row | None]) -> NDArray[np.float32]:
        actions = self._policy.act(self._observation)
        expected = (len(rows), self._contract.action_spec.size)
        if np.shape(actions) != expected:
            raise LatentGymError(
                f"policy {self._policy.name!r} returned actions of shape {np.shape(actions)}, expected {expected}"
            )
        for index, row in enumerate(rows):
            if row is not None and not np.isfinite(actions[index]).all():
                raise LatentGymError(
                    f"policy {self._policy.name!r} returned a NaN or infinite action in {self._rollouts.env_id}, seed "
                    f"{row.seed}, step {row.steps}: {np.asarray(actions[index]).tolist()}"
                )
        return actions

    def _step(self, index: int, row: _Row, action: NDArray[np.float32], *, film: bool) -> bool:
        """Step one environment; whether its episode is over."""
        observation, reward, terminated, truncated, info = self._envs[index].step(action)
        if "is_success" not in info:
            raise LatentGymError(f"{self._rollouts.env_id}: info holds no 'is_success' after step {row.steps}")
        self._observe(index, observation)
        row.steps += 1
        row.reward += float(reward)
        if info["is_success"] and row.first_success is None:
            row.first_success = row.steps
        if film:
            row.frames.append(self._frame(index))
        else:
            row.frames.clear()
        return bool(terminated or truncated or (self._rollouts.stop_at_success and row.first_success is not None))

    def _finish(self, row: _Row, quota: list[int]) -> EpisodeRecord:
        success = row.first_success is not None
        kind = 0 if success else 1
        if quota[kind] > 0 and row.frames:
            quota[kind] -= 1
            assert self._rollouts.video_dir is not None
            path = self._rollouts.video_dir / f"{'failure' if kind else 'success'}-{row.seed}.mp4"
            write_video(path, row.frames, self._contract.control_hz)
        return EpisodeRecord(row.seed, success, row.steps, row.first_success, row.reward)


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """One torch thread, as in worker processes: results must not depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
