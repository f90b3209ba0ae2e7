"""CALVIN's evaluation: chains of five instructions, 360 steps each, the robot reset once per chain (PROTOCOL #21)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from latentgym.envs.calvin.chains import CHAIN_LENGTH, Chain, initial_state, official_chains
from latentgym.envs.calvin.env import HORIZON
from latentgym.envs.calvin.tasks import predicate
from latentgym.envs.contract import contract_of
from latentgym.envs.make import make_env
from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.policies import CheckpointedPolicy, Policy, load_policy
from latentgym.rollouts.episodes import Description
from latentgym.rollouts.evaluate import SOFTWARE, compare_software
from latentgym.rollouts.in_process import single_threaded
from latentgym.rollouts.job_workers import ATTEMPTS, run_jobs
from latentgym.seeding import derive_seed
from latentgym.statistics import crossed_bootstrap_interval, wilson_interval

CHAINS_ENV = "latentgym/CalvinD-v0"
"""Where the official evaluation takes place, whatever scenes a policy was trained in."""

_OWN_OPTIONS = frozenset({"task", "horizon", "pixels"})
# A policy of scenes A to C is judged in D, and one of a single task by every instruction.
_DELIBERATE = frozenset({"env_id", "task"})
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class ChainRecord:
    """One chain.

    Attributes:
        index: its place in the list of chains.
        tasks: its instructions' tasks.
        steps: steps spent on each instruction that was given.
        completed: instructions carried out before the first failure.
        error: why the chain could not be run, after two attempts; ``None`` for one that was. Such a chain counts as
            failed at its first instruction.
    """

    index: int
    tasks: tuple[str, ...]
    steps: tuple[int, ...]
    completed: int
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; ``error`` only where there is one."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "error" or value is not None}


@dataclasses.dataclass(frozen=True)
class Rate:
    """A success rate with Wilson's 95 % interval."""

    successes: int
    trials: int
    rate: float
    low: float
    high: float

    @classmethod
    def of(cls, successes: int, trials: int) -> Rate:
        """The rate of ``successes`` among at least one trial."""
        return cls(successes, trials, successes / trials, *wilson_interval(successes, trials))


@dataclasses.dataclass(frozen=True)
class ChainEvaluation:
    """Chains run by one policy.

    Attributes:
        policy: name of the policy.
        records: one per chain, in order.
        renderer: what drew the frames; ``None`` where none were observed.
    """

    policy: str
    records: tuple[ChainRecord, ...]
    renderer: str | None = None

    @property
    def success_at(self) -> tuple[Rate, ...]:
        """Share of the chains with at least 1, 2, … instructions carried out in a row."""
        longest = max(len(record.tasks) for record in self.records)
        return tuple(
            Rate.of(sum(record.completed >= length for record in self.records), len(self.records))
            for length in range(1, longest + 1)
        )

    @property
    def mean_length(self) -> float:
        """Mean number of instructions carried out in a row."""
        return statistics.fmean(record.completed for record in self.records)

    def mean_length_interval(self, seed: int = 0) -> tuple[float, float] | None:
        """95 % interval of :attr:`mean_length`; ``None`` for a single chain.

        A bootstrap over chains. Where all have one length, which resampling cannot widen, the sum of Wilson's bounds of
        :attr:`success_at`.
        """
        if len(self.records) < 2:
            return None
        if len({record.completed for record in self.records}) == 1:
            return sum(rate.low for rate in self.success_at), sum(rate.high for rate in self.success_at)
        return crossed_bootstrap_interval([[record.completed for record in self.records]], seed=seed)

    @property
    def tasks(self) -> dict[str, Rate]:
        """Success per task, among the times that its instruction was given; tasks by name."""
        given: dict[str, list[bool]] = {}
        for record in self.records:
            for place in range(len(record.steps)):
                given.setdefault(record.tasks[place], []).append(place < record.completed)
        return {task: Rate.of(sum(done), len(done)) for task, done in sorted(given.items())}

    def describe(self) -> str:
        """Success at each length and the mean length, in one line; crashes are counted."""
        rates = ", ".join(
            f"{100 * rate.rate:.1f} % at {length}" for length, rate in enumerate(self.success_at, start=1)
        )
        interval = self.mean_length_interval()
        around = "" if interval is None else f" (95 % interval {interval[0]:.2f} to {interval[1]:.2f})"
        lost = [record for record in self.records if record.error is not None]
        crashed = f"; {len(lost)} crashed twice and count as failed, the first by {lost[0].error}" if lost else ""
        return (
            f"{self.policy} on {len(self.records)} CALVIN chains: {rates}; mean length {self.mean_length:.2f}{around}"
            f"{crashed}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: ``success_at``, ``mean_length`` with ``low`` and ``high``, ``tasks`` and every record."""
        low, high = self.mean_length_interval() or (None, None)
        return {
            "env_id": CHAINS_ENV,
            "policy": self.policy,
            "renderer": self.renderer,
            "chains": len(self.records),
            "success_at": {str(n): dataclasses.asdict(rate) for n, rate in enumerate(self.success_at, start=1)},
            "mean_length": {"value": self.mean_length, "low": low, "high": high},
            "tasks": {task: dataclasses.asdict(rate) for task, rate in self.tasks.items()},
            "records": [record.to_dict() for record in self.records],
        }


def evaluate_chains(
    policy: Policy,
    chains: Sequence[Chain] | int = 1000,
    *,
    seed: int = 0,
    workers: int = 1,
    steps_per_instruction: int = HORIZON,
    env_options: Mapping[str, Any] | None = None,
    software: str = "warn",
    chain_timeout_s: float = 3600.0,
    progress: Progress | None = None,
) -> ChainEvaluation:
    """Run chains of instructions in scene D, as the official evaluation does.

    A chain starts from :func:`~latentgym.envs.calvin.initial_state`. An instruction succeeds once the task oracle says
    so, judged against the moment when it was given; then the next one follows where the arm stands. The first failure
    ends the chain. The policy forgets its history with every instruction. A chain whose simulator fails, or whose
    worker dies or hangs, is repeated once, and reported by its record's ``error`` if that fails too.

    Args:
        policy: the policy; for ``workers`` > 1 one that can be saved.
        chains: pairs of an initial condition and task names, or how many of the thousand official chains.
        seed: root of the seeds of stochastic policies.
        workers: processes; the records do not depend on it.
        steps_per_instruction: steps that an instruction may take.
        env_options: options of ``make_env``; those left out are as the policy's training data were recorded.
        software: what to do if simulator or renderer are not those of the policy's training data: ``"warn"``,
            ``"refuse"`` or ``"ignore"``.
        chain_timeout_s: seconds after which a worker that runs one chain has hung; a single process is not watched.
        progress: called with (chains done, chains in all).

    Raises:
        LatentGymError: on invalid arguments, a policy that does not fit CALVIN or fails, an environment that cannot be
            made, other software where that is refused, or workers that keep dying.
    """
    listed = _checked_chains(chains)
    if workers < 1 or steps_per_instruction < 1 or not chain_timeout_s > 0:
        raise LatentGymError(
            "evaluate_chains: workers and steps_per_instruction must be at least 1 and chain_timeout_s positive, found "
            f"{workers}, {steps_per_instruction} and {chain_timeout_s}"
        )
    if software not in SOFTWARE:
        raise UnknownNameError("way with other software", software, SOFTWARE)
    options = {**_trained_options(policy), **_checked_options(env_options or {})}
    setting = _Setting(
        options, steps_per_instruction, seed, _DELIBERATE | set(env_options or ()), software, chain_timeout_s
    )
    run = _run_here if workers == 1 else _run_in_workers
    records: list[ChainRecord] = []
    renderers: set[str | None] = set()
    for record, renderer in run(setting, policy, listed, workers):
        records.append(record)
        if record.error is None:
            renderers.add(renderer)
        if progress is not None:
            progress(len(records), len(listed))
    ordered = tuple(sorted(records, key=lambda record: record.index))
    return ChainEvaluation(policy.name, ordered, renderers.pop() if renderers else None)


_Numbered = tuple[int, Chain]


def _checked_chains(chains: Sequence[Chain] | int) -> list[_Numbered]:
    listed = official_chains(chains) if isinstance(chains, int) else list(chains)
    if not listed:
        raise LatentGymError("evaluate_chains: expected at least one chain")
    for condition, tasks in listed:
        if not 1 <= len(tasks) <= CHAIN_LENGTH:
            raise LatentGymError(f"a chain has 1 to {CHAIN_LENGTH} tasks, found {len(tasks)}")
        initial_state(condition)
        for task in tasks:
            predicate(task)
    return list(enumerate(listed))


def _checked_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    unusable = sorted(options.keys() & _OWN_OPTIONS - {"pixels"} | options.keys() & {"goal", "corruption"})
    if unusable:
        raise LatentGymError(f"options {', '.join(unusable)} cannot be chosen for CALVIN's chains; leave them out")
    return options


def _trained_options(policy: Policy) -> dict[str, Any]:
    training = getattr(policy, "training", None)
    if training is None or "Calvin" not in training.env_id:
        return {}
    return {name: value for name, value in training.env_options().items() if name not in _OWN_OPTIONS}


@dataclasses.dataclass(frozen=True)
class _Setting:
    """How chains are run, the same in every process."""

    env_options: Mapping[str, Any]
    steps: int
    seed: int
    deliberate: frozenset[str]
    software: str
    timeout_s: float


class _ChainRunner:
    """One environment and one policy, which run chain after chain; a chain depends on nothing before it."""

    def __init__(self, setting: _Setting, policy: Policy) -> None:
        self._setting, self._policy = setting, policy
        options = {"pixels": policy.needs_pixels, **setting.env_options, "horizon": setting.steps}
        self._env: gymnasium.Env[Any, Any] = make_env(CHAINS_ENV, **options)
        self._inner: Any = self._env.unwrapped
        self.renderer: str | None = contract_of(self._env).settings.get("renderer")
        try:
            with self._policy_blamed():
                policy.bind([self._env], setting.deliberate)
            if setting.software != "ignore":
                # A policy of another scene meets the same simulator.
                refuse = setting.software == "refuse"
                compare_software(policy, Description.of(self._env), refuse=refuse, anywhere=True)
        except BaseException:
            self.close()
            raise

    def _policy_blamed(self) -> contextlib.AbstractContextManager[None]:
        return _blamed(f"policy {self._policy.name!r} failed")

    def close(self) -> None:
        self._env.close()

    def run(self, numbered: _Numbered) -> ChainRecord:
        """Run one chain.

        Raises:
            LatentGymError: if the policy fails. What the simulator raises comes through.
        """
        index, (condition, tasks) = numbered
        robot_obs, scene_obs = initial_state(condition)
        state = {"robot_obs": robot_obs, "scene_obs": scene_obs, "task": tasks[0]}
        observation, _ = self._env.reset(seed=0, options=state)
        steps: list[int] = []
        for place, task in enumerate(tasks):
            if place:
                observation = self._inner.start_task(task)
            solved, taken = self._follow(observation, derive_seed(self._setting.seed, "chain", index, place))
            steps.append(taken)
            if not solved:
                return ChainRecord(index, tuple(tasks), tuple(steps), place)
        return ChainRecord(index, tuple(tasks), tuple(steps), len(tasks))

    def _follow(self, observation: Mapping[str, Any], seed: int) -> tuple[bool, int]:
        """Act on one instruction from its first observation on; whether it succeeded, and the steps taken."""
        with self._policy_blamed():
            self._policy.reset(np.ones(1, np.bool_), [seed])
        for step in range(1, self._setting.steps + 1):
            batch = {
                key: np.array([value], object if isinstance(value, str) else None) for key, value in observation.items()
            }
            observation, _, _, _, info = self._env.step(self._act(batch))
            if info["is_success"]:
                return True, step
        return False, self._setting.steps

    def _act(self, batch: Mapping[str, Any]) -> NDArray[np.float32]:
        with self._policy_blamed():
            return np.asarray(self._policy.act(batch)[0])


@contextlib.contextmanager
def _blamed(text: str) -> Iterator[None]:
    """Whatever is raised here is no failure of a chain: it ends the evaluation."""
    try:
        yield
    except LatentGymError:
        raise
    except Exception as error:
        raise LatentGymError(f"{text}: {type(error).__name__}: {error}") from error


_Result = tuple[ChainRecord, str | None]


def _run_here(setting: _Setting, policy: Policy, chains: Sequence[_Numbered], workers: int) -> Iterator[_Result]:
    with single_threaded(), contextlib.closing(_Runners(setting, policy)) as runners:
        for chain in chains:
            problem = ""
            for _ in range(ATTEMPTS):
                try:
                    yield runners.run(chain)
                    break
                except LatentGymError:
                    raise
                except Exception as error:  # simulators raise anything
                    problem = f"{type(error).__name__}: {error}"
            else:
                yield _crashed(chain, problem), None


def _run_in_workers(setting: _Setting, policy: Policy, chains: Sequence[_Numbered], workers: int) -> Iterator[_Result]:
    if not isinstance(policy, CheckpointedPolicy):
        raise LatentGymError(f"policy {policy.name!r} cannot be saved, which workers > 1 need; use workers=1")
    with tempfile.TemporaryDirectory(prefix="latentgym-policy-") as scratch:
        folder = policy.save(Path(scratch) / "policy")
        opener = functools.partial(_open_worker, setting, folder)
        for number, result, problem in run_jobs(chains, opener, workers=workers, timeout_s=setting.timeout_s):
            yield result if problem is None else (_crashed(chains[number], problem), None)


def _open_worker(setting: _Setting, folder: Path, number: int) -> Callable[[_Numbered], _Result]:
    """In a worker process: what runs a chain. One of the processes says whether the software is another."""
    torch.set_num_threads(1)
    if number:
        setting = dataclasses.replace(setting, software="ignore")
    return _Runners(setting, load_policy(folder)).run


def _crashed(chain: _Numbered, problem: str) -> ChainRecord:
    return ChainRecord(chain[0], tuple(chain[1][1]), (), 0, problem)


class _Runners:
    """One runner after the other: a simulator that has failed is not used again."""

    def __init__(self, setting: _Setting, policy: Policy) -> None:
        self._setting, self._policy = setting, policy
        self._runner: _ChainRunner | None = None
        self._tried = False

    def run(self, chain: _Numbered) -> _Result:
        """Run one chain; whatever the simulator raises comes through."""
        if self._runner is None:
            # One that cannot be made at all ends the evaluation, one that cannot be made again costs the chain.
            first, self._tried = not self._tried, True
            with _blamed("CALVIN's environment cannot be made") if first else contextlib.nullcontext():
                self._runner = _ChainRunner(self._setting, self._policy)
            self._setting = dataclasses.replace(self._setting, software="ignore")  # it has been said
        try:
            return self._runner.run(chain), self._runner.renderer
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Close the environment, if there is one; what has failed may fail again."""
        runner, self._runner = self._runner, None
        if runner is not None:
            with contextlib.suppress(Exception):
                runner.close()
