"""Closed-loop evaluation: a fixed list of seeds, every episode counted, the same result for any number of workers."""

from __future__ import annotations

import dataclasses
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from latentgym.artifacts import read_json, write_json
from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.policies import CheckpointedPolicy, ExpertPolicy, Policy, RandomPolicy, load_policy
from latentgym.results import Row
from latentgym.rollouts.chunks import ChunkRunner, EpisodeRecord, Rollouts, single_threaded
from latentgym.seeding import derive_seed
from latentgym.statistics import wilson_interval
from latentgym.workers import follow_parent

# Seeds per chunk, in batches: rows that finish early take the chunk's next seed instead of idling.
_ROUNDS = 3
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a list of rollouts says.

    Attributes:
        successes: number of episodes that succeeded.
        episodes: number of episodes.
        success_rate: their ratio.
        low: lower end of Wilson's 95 % interval.
        high: upper end.
        mean_steps: mean number of steps.
        median_time_to_success: median steps to success among successes; ``None`` without one.
        mean_reward: mean sum of rewards.
    """

    successes: int
    episodes: int
    success_rate: float
    low: float
    high: float
    mean_steps: float
    median_time_to_success: float | None
    mean_reward: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Rollouts of one policy in one environment.

    Attributes:
        env_id: environment id.
        policy: name of the policy.
        records: one record per seed, in the order of the seeds.
        videos: files that were written, successes first.
    """

    env_id: str
    policy: str
    records: tuple[EpisodeRecord, ...]
    videos: tuple[Path, ...] = ()

    @property
    def summary(self) -> Summary:
        """Counts, success rate with Wilson's interval, and means."""
        times = [record.time_to_success for record in self.records if record.time_to_success is not None]
        successes, episodes = sum(record.success for record in self.records), len(self.records)
        low, high = wilson_interval(successes, episodes)
        return Summary(
            successes,
            episodes,
            successes / episodes,
            low,
            high,
            statistics.fmean(record.steps for record in self.records),
            statistics.median(times) if times else None,
            statistics.fmean(record.reward for record in self.records),
        )

    def describe(self) -> str:
        """The summary in one line."""
        s = self.summary
        time = "" if s.median_time_to_success is None else f", median {s.median_time_to_success:g} steps to success"
        return (
            f"{self.policy} in {self.env_id}: {s.successes} of {s.episodes} succeeded, {100 * s.success_rate:.0f} % "
            f"(95 % interval {100 * s.low:.0f} to {100 * s.high:.0f} %){time}"
        )

    def to_rows(
        self, *, encoder: str | None = None, family: str = "", seed: int = 0, policy_seed: int | None = None
    ) -> list[Row]:
        """``success_rate``, ``time_to_success_steps`` (median over successes) and ``mean_reward``."""
        s = self.summary
        values = {
            "success_rate": (s.success_rate, s.low, s.high, s.episodes),
            "time_to_success_steps": (s.median_time_to_success, None, None, s.successes),
            "mean_reward": (s.mean_reward, None, None, s.episodes),
        }
        return [
            Row(
                env=self.env_id, encoder=encoder or self.policy, family=family, metric=metric, value=value, low=low,
                high=high, n=n, seed=seed, readout="policy", policy_seed=policy_seed,
            )
            for metric, (value, low, high, n) in values.items()
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; videos by file name."""
        return {
            "env_id": self.env_id,
            "policy": self.policy,
            "summary": dataclasses.asdict(self.summary),
            "records": [dataclasses.asdict(record) for record in self.records],
            "videos": [path.name for path in self.videos],
        }

    def write(self, path: Path) -> None:
        """Write :meth:`to_dict` as JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """Read what :meth:`write` wrote; videos are looked for beside the file.

        Raises:
            CorruptDataError: if the file is missing or damaged.
        """
        data = read_json(path)
        try:
            records = tuple(EpisodeRecord(**record) for record in data["records"])
            videos = tuple(path.parent / name for name in data["videos"])
            return cls(data["env_id"], data["policy"], records, videos)
        except (KeyError, TypeError) as error:
            raise CorruptDataError(f"{path} holds no evaluation: {error!r}") from error


def evaluate(
    env_id: str,
    policy: Policy,
    seeds: Sequence[int] = range(100),
    *,
    workers: int = 1,
    batch_size: int = 8,
    env_options: Mapping[str, Any] | None = None,
    corruption: str | None = None,
    video_dir: str | Path | None = None,
    videos: tuple[int, int] = (3, 3),
    stop_at_success: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Roll a policy out once per seed.

    An episode succeeds if ``is_success`` is true after any of its steps. Every listed seed is run to its end and
    counted. The list is cut into chunks that depend on ``batch_size`` alone, and inference runs on batches of that one
    size, so that records depend on the seeds and not on ``workers`` or timing.

    Args:
        env_id: environment id, as for :func:`latentgym.envs.make.make_env`.
        policy: the policy; for ``workers`` > 1 one that can be saved.
        seeds: one seed per episode, all different, at least 0.
        workers: processes; 1 runs in this one.
        batch_size: environments that the policy serves at once.
        env_options: options of ``make_env``; those left out are as the policy's training data were recorded.
        corruption: corruption of every observed frame, such as ``"snow:3"``, drawn from each episode's seed; see
            :func:`latentgym.rollouts.evaluate_corrupted` for the drop that it causes.
        video_dir: folder for MP4s; none are written without it.
        videos: how many successes and how many failures to film, the first of each.
        stop_at_success: whether an episode ends at its first success (rewards then count up to it).
        progress: called with (episodes done, episodes in all).

    Returns:
        One record per seed in the order of ``seeds``, and a summary.

    Raises:
        LatentGymError: on invalid arguments, a policy that does not fit the environment, an action that is not finite
            (named by policy, seed and step), or a worker that died.

    Example:
        >>> from latentgym.policies import ExpertPolicy
        >>> evaluate("latentgym/TabletopReach-v0", ExpertPolicy(), seeds=range(4)).summary.success_rate
        1.0
    """
    seeds = [int(seed) for seed in seeds]
    _check_arguments(seeds, workers, batch_size, videos)
    if corruption is not None:
        if not policy.needs_pixels:
            raise LatentGymError(f"policy {policy.name!r} reads no frames, so that corrupting them changes nothing")
        env_options = {**(env_options or {}), "corruption": corruption}
    options = {**_trained_options(policy, env_id), **(env_options or {})}
    folder = None if video_dir is None else Path(video_dir)
    rollouts = Rollouts(env_id, options, batch_size, stop_at_success, folder, videos, frozenset(env_options or ()))
    size = batch_size * _ROUNDS
    chunks = [seeds[start : start + size] for start in range(0, len(seeds), size)]
    run = _run_here if workers == 1 else _run_in_workers
    records = tuple(record for chunk in run(rollouts, policy, chunks, workers, progress) for record in chunk)
    kept = _keep_first(folder, records, videos) if folder is not None else ()
    return Evaluation(env_id, policy.name, records, kept)


def rollout_seeds(seed: int, env_id: str, episodes: int) -> list[int]:
    """The seeds of a study's rollouts: a function of root seed and environment, shared by every policy."""
    return [derive_seed(seed, "rollout", env_id, index) for index in range(episodes)]


def resolve_policy(name: str | Path) -> Policy:
    """``"expert"``, ``"random"``, the folder of a saved policy, or a model file of Stable-Baselines3.

    Raises:
        LatentGymError: if it is neither.
    """
    if str(name) == "expert":
        return ExpertPolicy()
    if str(name) == "random":
        return RandomPolicy()
    if not Path(name).exists():
        raise LatentGymError(
            f"no policy {str(name)!r}: expected 'expert', 'random', the folder of a trained policy, or a model file "
            "(.zip) of Stable-Baselines3"
        )
    return load_policy(name)


def _check_arguments(seeds: Sequence[int], workers: int, batch_size: int, videos: tuple[int, int]) -> None:
    problems = []
    if not seeds or min(seeds) < 0:
        problems.append("seeds: expected at least one, none negative")
    if len(set(seeds)) != len(seeds):
        problems.append("seeds: every seed may be listed once")
    if workers < 1 or batch_size < 1:
        problems.append(f"workers and batch_size must be at least 1, found {workers} and {batch_size}")
    if len(videos) != 2 or min(videos) < 0:
        problems.append(f"videos: expected a number of successes and of failures, found {videos}")
    if problems:
        raise LatentGymError("evaluate: " + "; ".join(problems))


def _trained_options(policy: Policy, env_id: str) -> dict[str, Any]:
    training = getattr(policy, "training", None)
    return training.env_options() if training is not None and training.env_id == env_id else {}


def _run_here(
    rollouts: Rollouts, policy: Policy, chunks: Sequence[Sequence[int]], workers: int, progress: Progress | None
) -> Iterator[list[EpisodeRecord]]:
    done, total = 0, sum(map(len, chunks))

    def count(episodes: int) -> None:
        nonlocal done
        done += episodes
        if progress is not None:
            progress(done, total)

    with single_threaded(), ChunkRunner(rollouts, policy) as runner:
        for chunk in chunks:
            yield runner.run(chunk, count)


def _run_in_workers(
    rollouts: Rollouts, policy: Policy, chunks: Sequence[Sequence[int]], workers: int, progress: Progress | None
) -> Iterator[list[EpisodeRecord]]:
    if not isinstance(policy, CheckpointedPolicy):
        raise LatentGymError(f"policy {policy.name!r} cannot be saved, which workers > 1 need; use workers=1")
    done, total = 0, sum(map(len, chunks))
    with tempfile.TemporaryDirectory(prefix="latentgym-policy-") as scratch:
        folder = policy.save(Path(scratch) / "policy")
        # GL contexts do not survive a fork, so workers are started afresh.
        pool = ProcessPoolExecutor(
            min(workers, len(chunks)), multiprocessing.get_context("spawn"), _open_worker, (rollouts, folder)
        )
        try:
            for records in pool.map(_run_in_worker, chunks):
                done += len(records)
                if progress is not None:
                    progress(done, total)
                yield records
        except BrokenProcessPool as error:
            raise LatentGymError(
                f"a rollout worker in {rollouts.env_id} died (killed, or out of memory); use fewer workers or a "
                "smaller batch_size"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


# A worker process serves one evaluation; its environments and policy are made with its first chunk.
_worker: dict[str, Any] = {}


def _open_worker(rollouts: Rollouts, folder: Path) -> None:
    follow_parent()
    _worker.update(rollouts=rollouts, folder=folder)


def _run_in_worker(seeds: Sequence[int]) -> list[EpisodeRecord]:
    try:
        with single_threaded():
            if "runner" not in _worker:
                _worker["runner"] = ChunkRunner(_worker["rollouts"], load_policy(_worker["folder"])).__enter__()
            records: list[EpisodeRecord] = _worker["runner"].run(seeds)
            return records
    except LatentGymError as error:
        # Subclasses with arguments of their own do not survive the way back to the parent.
        raise LatentGymError(str(error)) from None


def _keep_first(folder: Path, records: Sequence[EpisodeRecord], videos: tuple[int, int]) -> tuple[Path, ...]:
    """Of the videos that chunks wrote, keep the first of each outcome in the order of the seeds."""
    kept = []
    for outcome, wanted in zip(("success", "failure"), videos, strict=True):
        written = [folder / f"{outcome}-{record.seed}.mp4" for record in records]
        written = [path for path in written if path.is_file()]
        kept += written[:wanted]
        for path in written[wanted:]:
            path.unlink()
    return tuple(kept)
