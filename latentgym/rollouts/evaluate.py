"""Closed-loop evaluation: a fixed list of seeds, every episode counted, the same result for any number of workers."""

from __future__ import annotations

import dataclasses
import os
import pickle
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium

from latentgym.artifacts import read_json, write_json
from latentgym.encoders.contract import Encoder
from latentgym.errors import CorruptDataError, LatentGymError, UnknownNameError
from latentgym.policies import ExpertPolicy, Policy, RandomPolicy, StableBaselinesPolicy, load_policy
from latentgym.policies.checkpoint import Training, policy_place
from latentgym.results import Row
from latentgym.rollouts.actor import Actor, default_batch_size, is_small
from latentgym.rollouts.engine import Engine, percentiles_ms
from latentgym.rollouts.episodes import DescribedEnv, Description, Setting
from latentgym.rollouts.in_process import InProcess, single_threaded
from latentgym.rollouts.records import EpisodeRecord, Timing
from latentgym.rollouts.schedule import Progress, Schedule
from latentgym.rollouts.slots import Slots
from latentgym.seeding import derive_seed
from latentgym.statistics import wilson_interval

SOFTWARE = ("warn", "refuse", "ignore")
_INFERENCE = ("auto", "main", "workers")


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
        crashed: episodes that could not be run in two attempts; they count as not succeeded, and not in the means.
    """

    successes: int
    episodes: int
    success_rate: float
    low: float
    high: float
    mean_steps: float
    median_time_to_success: float | None
    mean_reward: float
    crashed: int = 0


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Rollouts of one policy in one environment.

    Attributes:
        env_id: environment id.
        policy: name of the policy.
        records: one record per seed, in the order of the seeds.
        videos: files that were written, successes first.
        timing: where the time went; takes no part in comparisons.
    """

    env_id: str
    policy: str
    records: tuple[EpisodeRecord, ...]
    videos: tuple[Path, ...] = ()
    timing: Timing | None = dataclasses.field(default=None, compare=False)

    @property
    def summary(self) -> Summary:
        """Counts, success rate with Wilson's interval, and means."""
        times = [record.time_to_success for record in self.records if record.time_to_success is not None]
        successes, episodes = sum(record.success for record in self.records), len(self.records)
        low, high = wilson_interval(successes, episodes)
        run = [record for record in self.records if record.error is None]
        return Summary(
            successes,
            episodes,
            successes / episodes,
            low,
            high,
            statistics.fmean(record.steps for record in run) if run else 0.0,
            statistics.median(times) if times else None,
            statistics.fmean(record.reward for record in run) if run else 0.0,
            episodes - len(run),
        )

    def describe(self) -> str:
        """The summary in one line."""
        s = self.summary
        time = "" if s.median_time_to_success is None else f", median {s.median_time_to_success:g} steps to success"
        crashed = ""
        if s.crashed:
            first = next(record for record in self.records if record.error is not None)
            crashed = f"; {s.crashed} crashed twice and count as failed, seed {first.seed} first: {first.error}"
        return (
            f"{self.policy} in {self.env_id}: {s.successes} of {s.episodes} succeeded, {100 * s.success_rate:.0f} % "
            f"(95 % interval {100 * s.low:.0f} to {100 * s.high:.0f} %){time}{crashed}"
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

    def to_dict(self, *, timing: bool = True) -> dict[str, Any]:
        """As JSON types; videos by file name. Without ``timing`` equal evaluations give equal texts."""
        data = {
            "env_id": self.env_id,
            "policy": self.policy,
            "summary": dataclasses.asdict(self.summary),
            "records": [record.to_dict() for record in self.records],
            "videos": [path.name for path in self.videos],
        }
        if timing and self.timing is not None:
            data["timing"] = dataclasses.asdict(self.timing)
        return data

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
            records = tuple(EpisodeRecord.from_dict(record) for record in data["records"])
            videos = tuple(path.parent / name for name in data["videos"])
            timing = Timing.from_dict(data["timing"]) if "timing" in data else None
            return cls(data["env_id"], data["policy"], records, videos, timing)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CorruptDataError(f"{path} holds no evaluation: {error!r}") from error


def evaluate(
    env_id: str,
    policy: Policy | str | Path | Any,
    seeds: Sequence[int] = range(100),
    *,
    workers: int | None = None,
    batch_size: int | None = None,
    inference: str = "auto",
    env_options: Mapping[str, Any] | None = None,
    corruption: str | None = None,
    video_dir: str | Path | None = None,
    videos: tuple[int, int] = (3, 3),
    stop_at_success: bool = True,
    per_step: bool = False,
    software: str = "warn",
    step_timeout_s: float = 300.0,
    progress: Progress | None = None,
) -> Evaluation:
    """Roll a policy out once per seed.

    An episode succeeds if ``is_success`` is true after any of its steps. Every listed seed is run to its end and
    counted. Inference runs on batches of one size, filled up where fewer environments are ready, and stochastic
    policies draw from a generator per episode: records depend on the seeds, and not on ``workers`` or timing, to the
    last bit.

    With workers, each process steps several environments and leaves what they observe in shared memory; this process
    encodes and acts on whatever is ready, and a worker that has finished an episode takes the next seed. Where the
    encoder is small and on the CPU, Python's lock would keep this process from using more than one core: there each
    worker has a copy of the policy and acts on what its own environments observe. A worker that dies or hangs is
    replaced and its episodes are repeated. So is an episode whose simulator raises an exception. An episode that fails
    twice is reported by its record's ``error`` and counts as not succeeded.

    Args:
        env_id: environment id, as for :func:`latentgym.envs.make.make_env`.
        policy: the policy, or what :func:`resolve_policy` makes one of: its name or folder, or a model of
            Stable-Baselines3. One that acts on the simulator (such as the expert) is sent to the workers, and must
            survive pickling.
        seeds: one seed per episode, all different, at least 0.
        workers: processes that step environments, best one per core; 0 or ``None`` runs everything in this one.
            Workers are started afresh (not forked), so a script that asks for some must guard its main part by
            ``if __name__ == "__main__":``.
        batch_size: observations per batch of inference, and environments that run in this process where there are no
            workers. By default 4 for small encoders, for large ones 1 on a CPU and 16 on an accelerator.
        inference: where a policy acts if there are workers: ``"main"``, in this process; ``"workers"``, by copies in
            theirs, for which it must survive pickling; ``"auto"``, by copies if it is concurrent, can be copied, and
            its encoder is on the CPU and has at most 5 million parameters.
        env_options: options of ``make_env``; those left out are as the policy's training data were recorded.
        corruption: corruption of every observed frame, such as ``"snow:3"``, drawn from each episode's seed; see
            :func:`latentgym.rollouts.evaluate_corrupted` for the drop that it causes.
        video_dir: folder for MP4s; none are written without it.
        videos: how many successes and how many failures to film, the first of each.
        stop_at_success: whether an episode ends at its first success (rewards then count up to it).
        per_step: whether records hold a trace of every step.
        software: what to do if simulator or renderer are not those of the policy's training data: ``"warn"``,
            ``"refuse"`` or ``"ignore"``.
        step_timeout_s: seconds after which a worker that is making, resetting or stepping an environment has hung; five
            minutes at least are given to a process that starts.
        progress: called with (episodes done, episodes in all).

    Returns:
        One record per seed in the order of ``seeds``, a summary, and where the time went.

    Raises:
        LatentGymError: on invalid arguments, a policy that does not fit the environment, other software than the
            policy's training data had where that is refused, an action that is not finite (named by policy, seed and
            step), an environment that breaks its contract, or workers that keep dying.

    Example:
        >>> evaluate("latentgym/TabletopReach-v0", "expert", seeds=range(4)).summary.success_rate
        1.0
    """
    began_at = time.perf_counter()
    policy = resolve_policy(policy)
    seeds, workers = [int(seed) for seed in seeds], workers or 0
    _check_arguments(seeds, workers, batch_size, videos, step_timeout_s)
    if software not in SOFTWARE:
        raise UnknownNameError("way with other software", software, SOFTWARE)
    if inference not in _INFERENCE:
        raise UnknownNameError("place of inference", inference, _INFERENCE)
    if corruption is not None:
        if not policy.needs_pixels:
            raise LatentGymError(f"policy {policy.name!r} reads no frames, so that corrupting them changes nothing")
        env_options = {**(env_options or {}), "corruption": corruption}
    folder = None if video_dir is None else Path(video_dir)
    setting = _setting(
        env_id, policy, env_options or {}, folder is not None and max(videos) > 0, stop_at_success, per_step
    )
    pickled = _pickled(policy, inference) if workers else None
    schedule = Schedule(seeds, videos=videos, folder=folder, progress=progress)
    size = default_batch_size(policy) if batch_size is None else batch_size
    threads, on_cpu = _threads(policy)

    def meet(description: Description, slots: Slots) -> Actor | None:
        if software != "ignore":
            compare_software(policy, description, refuse=software == "refuse")
        if policy.needs_simulator:
            return None
        policy.bind([DescribedEnv(description)] * slots.layout.slots, setting.deliberate)
        return Actor(
            policy, slots, env_id, batch_size=size, threads=threads if workers and pickled is None else 1,
            instruction=description.contract.instruction,
        )  # fmt: skip

    if folder is not None and max(videos) > 0:
        for name in (f"{outcome}-{seed}.mp4" for seed in seeds for outcome in ("success", "failure")):
            (folder / name).unlink(missing_ok=True)  # another run's
    engine: Engine | InProcess
    if workers:
        engine = Engine(
            setting, schedule, workers=workers, batch_size=size, threads=threads, on_cpu=on_cpu,
            step_timeout_s=step_timeout_s, pickled=pickled, meet=meet,
        )  # fmt: skip
    else:
        engine = InProcess(setting, schedule, batch_size=size, meet=meet)
    with single_threaded():
        engine.run()
    records = schedule.records
    timing = Timing(
        workers=workers,
        batch_size=engine.batch_size,
        startup_s=engine.opened_at - began_at,
        wall_s=engine.finished_at - engine.opened_at,
        steps=sum(record.steps for record in records),
        batches=engine.batches,
        policy_latency_ms=percentiles_ms(engine.latencies_s),
        restarts=engine.restarts,
        cpu_s=(engine.cpu_s, engine.worker_cpu_s),
    )
    kept = _keep_first(folder, records, videos) if folder is not None else ()
    return Evaluation(env_id, policy.name, records, kept, timing)


def rollout_seeds(seed: int, env_id: str, episodes: int) -> list[int]:
    """The seeds of a study's rollouts: a function of root seed and environment, shared by every policy."""
    return [derive_seed(seed, "rollout", env_id, index) for index in range(episodes)]


def resolve_policy(policy: Any) -> Policy:
    """The policy that is named or given.

    Args:
        policy: a policy; ``"expert"``, ``"random"``, the folder of a saved policy, or a model file of
            Stable-Baselines3; or such a model itself, trained on
            :class:`~latentgym.envs.wrappers.LatentObservation`.

    Raises:
        LatentGymError: if it is none of them.
    """
    if isinstance(policy, Policy) or hasattr(policy, "act"):
        return policy  # type: ignore[no-any-return]
    if hasattr(policy, "policy") and hasattr(policy, "observation_space"):
        return StableBaselinesPolicy.from_model(policy)
    if not isinstance(policy, str | Path):
        raise LatentGymError(
            f"expected a policy, its name or place, or a model of Stable-Baselines3; found {type(policy).__name__}"
        )
    name = policy
    if str(name) == "expert":
        return ExpertPolicy()
    if str(name) == "random":
        return RandomPolicy()
    if not policy_place(name).exists():
        raise LatentGymError(
            f"no policy {str(name)!r}: expected 'expert', 'random', the folder of a trained policy, or a model file "
            "(.zip) of Stable-Baselines3"
        )
    return load_policy(name)


def _check_arguments(
    seeds: Sequence[int], workers: int, batch_size: int | None, videos: tuple[int, int], step_timeout_s: float
) -> None:
    problems = []
    if not seeds or min(seeds) < 0:
        problems.append("seeds: expected at least one, none negative")
    if len(set(seeds)) != len(seeds):
        problems.append("seeds: every seed may be listed once")
    if workers < 0 or (batch_size is not None and batch_size < 1):
        problems.append(f"workers must be at least 0 and batch_size at least 1, found {workers} and {batch_size}")
    if len(videos) != 2 or min(videos) < 0:
        problems.append(f"videos: expected a number of successes and of failures, found {videos}")
    if not step_timeout_s > 0:
        problems.append(f"step_timeout_s must be positive, found {step_timeout_s}")
    if problems:
        raise LatentGymError("evaluate: " + "; ".join(problems))


def _setting(
    env_id: str, policy: Policy, env_options: Mapping[str, Any], films: bool, stop_at_success: bool, per_step: bool
) -> Setting:
    training = getattr(policy, "training", None)
    trained = training.env_options() if training is not None and training.covers(env_id) else {}
    spec = gymnasium.registry.get(env_id)
    options = {"pixels": policy.needs_pixels or films, **trained, **env_options}
    if films and not options["pixels"]:
        raise LatentGymError("videos need frames, which env_options leave out by pixels=False; give no video_dir")
    return Setting(
        env_id=env_id,
        env_options=options,
        stop_at_success=stop_at_success,
        per_step=per_step,
        simulator_policy=policy if policy.needs_simulator else None,
        deliberate=frozenset(env_options),
        registered=() if spec is None or env_id.startswith("latentgym/") else (spec,),
    )


def _pickled(policy: Policy, inference: str) -> bytes | None:
    """The policy for workers to copy, if that is wanted.

    Raises:
        LatentGymError: if it was asked for and cannot be had.
    """
    encoder: Encoder | None = getattr(policy, "encoder", None)
    light = policy.concurrent and encoder is not None and encoder.device.type == "cpu" and is_small(policy)
    if policy.needs_simulator or inference == "main" or (inference == "auto" and not light):
        return None
    try:
        pickled = pickle.dumps(policy)
    except Exception as error:  # whatever the policy's own parts raise
        if inference == "auto":
            return None
        raise LatentGymError(
            f"policy {policy.name!r} cannot be copied to worker processes ({error}); use inference='main'"
        ) from error
    # What a notebook or a prompt defines cannot be imported elsewhere.
    return None if inference == "auto" and b"__main__" in pickled else pickled


def _threads(policy: Policy) -> tuple[int, bool]:
    """How many batches may be under way at once, and whether they are on this machine's cores."""
    encoder: Encoder | None = getattr(policy, "encoder", None)
    if encoder is not None and encoder.device.type != "cpu":
        return 1, False
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, True


def compare_software(policy: Policy, description: Description, *, refuse: bool, anywhere: bool = False) -> None:
    """Simulators and renderers change what a policy sees; warn of it, or refuse.

    Args:
        policy: one that may say what it was trained on.
        description: the environments that it meets.
        refuse: whether to raise.
        anywhere: whether environments that it was not trained in count too.

    Raises:
        LatentGymError: if they differ and ``refuse``.
    """
    training: Training | None = getattr(policy, "training", None)
    if training is None or training.software is None:
        return
    if not anywhere and not training.covers(description.contract.env_id):
        return
    differences = training.software.differences(description.software, pixels=policy.needs_pixels)
    if not differences:
        return
    found = "; ".join(differences)
    text = f"policy {policy.name!r} meets other software than its training data were recorded with: {found}"
    if refuse:
        raise LatentGymError(f"{text}; install those versions, or record and train again")
    warnings.warn(f"{text}; success may differ for that alone", stacklevel=3)


def _keep_first(folder: Path, records: Sequence[EpisodeRecord], videos: tuple[int, int]) -> tuple[Path, ...]:
    """Of the videos that chunks wrote, keep the first of each outcome in the order of the seeds."""
    kept = []
    for outcome, wanted in zip(("success", "failure"), videos, strict=True):
        run = [record for record in records if record.error is None]
        own = [record.seed for record in run if record.success == (outcome == "success")]
        written = [path for path in (folder / f"{outcome}-{seed}.mp4" for seed in own) if path.is_file()]
        kept += written[:wanted]
        for path in written[wanted:]:
            path.unlink()
    return tuple(kept)
