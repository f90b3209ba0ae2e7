"""Record whole episodes into a data set, in this process or in several, with the same result to the bit."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import gymnasium

from latentgym.envs.behaviours import BEHAVIOURS, Behaviour, make_behaviour
from latentgym.envs.contract import EnvContract, Expert, contract_of
from latentgym.envs.episode_builder import EpisodeBuilder
from latentgym.envs.make import check_options, default_image_size, make_env
from latentgym.envs.provenance import make_provenance
from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.seeding import derive_seed, numpy_generator
from latentgym.trajectories.episode import Episode, Provenance
from latentgym.trajectories.store import Dataset, Store, create_store, open_dataset
from latentgym.workers import follow_parent

_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class _Recording:
    """Everything that determines a recording; travels to the workers."""

    env_id: str
    policy: str
    seed: int
    random_fraction: float
    image_size: int
    env_options: dict[str, Any]
    call: str
    expert: Expert | None = None

    def policy_of(self, index: int) -> str:
        """The behaviour of one episode; the random ones are spread evenly."""
        before, after = (int(count * self.random_fraction + _ROUNDING) for count in (index, index + 1))
        return "random" if after > before else self.policy


def record(
    env_id: str,
    out: str | os.PathLike[str],
    *,
    episodes: int,
    policy: str = "noisy-expert",
    seed: int = 0,
    num_envs: int = 1,
    random_fraction: float = 0.0,
    image_size: int | None = None,
    env_options: Mapping[str, Any] | None = None,
    expert: Expert | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Record episodes into a data set; a recording that was interrupted goes on where it stopped.

    Episode i depends on ``seed`` and i alone, so the data are the same for every ``num_envs``. Episodes appear whole
    or not at all: on an error, a crash or Ctrl-C what is finished is kept, and the same call finishes the rest.
    Workers are started afresh (not forked), so a script that asks for several must guard its main part by
    ``if __name__ == "__main__":``.

    Args:
        env_id: see :func:`latentgym.envs.make.make_env`.
        out: folder of the data set: new, empty, or begun by an equal call.
        episodes: number of episodes.
        policy: ``"expert"``, ``"noisy-expert"`` (expert plus smooth noise, with the clean action as label) or
            ``"random"``.
        seed: root seed; episode i is reset with ``derive_seed(seed, "episode", i)``.
        num_envs: number of processes.
        random_fraction: share of the episodes, spread evenly, that use policy ``"random"`` instead.
        image_size: height and width of the frames in pixels; by default 64, CALVIN's 200.
        env_options: further options of :func:`latentgym.envs.make.make_env`.
        expert: demonstrates in place of the environment's own expert, for example
            :class:`latentgym.policies.LearnedExpert`; with several processes it must survive pickling.
        progress: called with (episodes finished, episodes in all), first with what is there already.

    Returns:
        The finished data set.

    Raises:
        LatentGymError: for bad arguments, an environment without the expert that ``policy`` needs, a full disk, a
            folder that holds something else, or a worker that died.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     dataset = record("latentgym/TabletopReach-v0", folder, episodes=2, policy="expert", image_size=32)
        >>> len(dataset), dataset.policies
        (2, ('expert', 'expert'))
    """
    options = dict(env_options or {})
    check_options(options)
    image_size = default_image_size(env_id) if image_size is None else image_size
    _check_arguments(episodes, policy, num_envs, random_fraction)
    call = (
        f"record({env_id!r}, {str(out)!r}, episodes={episodes}, policy={policy!r}, seed={seed}, num_envs={num_envs}, "
        f"random_fraction={random_fraction}, image_size={image_size}, env_options={options}"
        f"{'' if expert is None else f', expert={_name_of(expert)}'})"
    )
    recording = _Recording(env_id, policy, seed, random_fraction, image_size, options, call, expert)
    if num_envs == 1:
        _record_here(recording, Path(out), episodes, progress)
    else:
        _record_in_workers(recording, Path(out), episodes, num_envs, progress)
    return open_dataset(out)


def run_episode(env: gymnasium.Env[Any, Any], behaviour: Behaviour, *, root_seed: int, index: int) -> Episode:
    """Play episode ``index`` of the recording with ``root_seed`` to its end.

    Raises:
        LatentGymError: if the environment breaks its contract.
    """
    seed = derive_seed(root_seed, "episode", index)
    observation, _ = env.reset(seed=seed)
    behaviour.reset(env, numpy_generator(root_seed, "behaviour", index))
    builder = EpisodeBuilder(env, observation, seed=seed, policy=behaviour.name)
    for _ in range(contract_of(env).horizon):
        decision = behaviour.act(env, observation)
        result = env.step(decision.action)
        builder.add(decision.action, result, expert_action=decision.expert_action, random=decision.random)
        observation, _, terminated, truncated, _ = result
        if terminated or truncated:
            break
    return builder.build()


class _Recorder:
    """One environment and its behaviours, kept from episode to episode."""

    def __init__(self, recording: _Recording) -> None:
        self._recording = recording
        self._env = make_env(recording.env_id, image_size=recording.image_size, **recording.env_options)
        self._behaviours: dict[str, Behaviour] = {}
        self.contract: EnvContract = contract_of(self._env)

    def provenance(self) -> Provenance:
        """Where the data come from, with the settings that determine them."""
        names = ("policy", "random_fraction", "image_size", "env_options")
        settings = {name: getattr(self._recording, name) for name in names}
        if self._recording.expert is not None:
            settings["expert"] = _name_of(self._recording.expert)
        self._behaviour(self._recording.policy)  # a missing expert shows before a folder is made
        return make_provenance(self.contract, seed=self._recording.seed, call=self._recording.call, settings=settings)

    def episode(self, index: int) -> Episode:
        """Play one episode."""
        behaviour = self._behaviour(self._recording.policy_of(index))
        return run_episode(self._env, behaviour, root_seed=self._recording.seed, index=index)

    def close(self) -> None:
        self._env.close()

    def _behaviour(self, policy: str) -> Behaviour:
        if policy not in self._behaviours:
            self._behaviours[policy] = make_behaviour(policy, self._env, self._recording.expert)
        return self._behaviours[policy]


def _name_of(expert: Expert) -> str:
    return str(getattr(expert, "name", type(expert).__name__))


def _open_store(out: Path, episodes: int, contract: EnvContract, provenance: Provenance) -> Store:
    return create_store(
        out,
        env_id=contract.env_id,
        action_spec=contract.action_spec,
        cameras=contract.cameras,
        control_hz=contract.control_hz,
        horizon=contract.horizon,
        episodes=episodes,
        provenance=provenance,
        settings={**contract.settings, "suite": contract.suite},
    )


def _record_here(recording: _Recording, out: Path, episodes: int, progress: Callable[[int, int], None] | None) -> None:
    with contextlib.closing(_Recorder(recording)) as recorder:
        store = _open_store(out, episodes, recorder.contract, recorder.provenance())
        missing = store.missing()
        _report(progress, episodes - len(missing), episodes)
        for count, index in enumerate(missing, start=1):
            store.write(index, recorder.episode(index))
            _report(progress, episodes - len(missing) + count, episodes)


def _record_in_workers(
    recording: _Recording, out: Path, episodes: int, num_envs: int, progress: Callable[[int, int], None] | None
) -> None:
    # Forking a process that holds a GL context hangs, so workers start from a clean server or from nothing.
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(num_envs, mp_context=context, initializer=follow_parent)
    store: Store | None = None
    try:
        contract, provenance = pool.submit(_describe, recording).result()
        store = _open_store(out, episodes, contract, provenance)
        missing = store.missing()
        _report(progress, episodes - len(missing), episodes)
        futures = [pool.submit(_record_one, recording, store, index) for index in missing]
        for count, future in enumerate(as_completed(futures), start=1):
            future.result()
            _report(progress, episodes - len(missing) + count, episodes)
    except BrokenProcessPool as error:
        kept = 0 if store is None else episodes - len(store.missing())
        raise LatentGymError(
            f"a worker process died while recording {recording.env_id} (out of memory, a crash of the GL driver, or a "
            f"script without 'if __name__ == \"__main__\":'); {kept} of {episodes} episodes are kept in {out}, the "
            "same call goes on from there, num_envs=1 records in this process"
        ) from error
    finally:
        # Episodes under way are finished and kept.
        pool.shutdown(wait=True, cancel_futures=True)


def _report(progress: Callable[[int, int], None] | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


_worker: dict[str, _Recorder] = {}


def _recorder_here(recording: _Recording) -> _Recorder:
    """This worker's recorder, made at its first task."""
    if "recorder" not in _worker:
        _worker["recorder"] = _Recorder(recording)
    return _worker["recorder"]


@contextlib.contextmanager
def _portable_errors() -> Any:
    """Errors must survive the way to the parent; those with constructors of their own do not."""
    try:
        yield
    except LatentGymError as error:
        raise LatentGymError(str(error)) from None


def _describe(recording: _Recording) -> tuple[EnvContract, Provenance]:
    with _portable_errors():
        recorder = _recorder_here(recording)
        return recorder.contract, recorder.provenance()


def _record_one(recording: _Recording, store: Store, index: int) -> None:
    with _portable_errors():
        store.write(index, _recorder_here(recording).episode(index))


def _check_arguments(episodes: int, policy: str, num_envs: int, random_fraction: float) -> None:
    for name, value in (("episodes", episodes), ("num_envs", num_envs)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise LatentGymError(f"{name}: expected a positive integer, found {value!r}")
    if not 0.0 <= random_fraction <= 1.0:
        raise LatentGymError(f"random_fraction: expected a number from 0 to 1, found {random_fraction!r}")
    if policy not in BEHAVIOURS:
        raise UnknownNameError("behaviour policy", policy, BEHAVIOURS)
