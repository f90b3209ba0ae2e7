"""Rollouts with worker processes: they step environments, this process encodes and acts on whatever is ready.

Where workers have copies of the policy, they act on what their own environments observe, and this process only hands
out episodes. Otherwise threads of this process take turns as the one that reads the workers' messages. As soon as
enough observations have come in for a batch, that thread gives its turn away and serves the batch; so nothing waits for
the slowest environment, and on a CPU several batches can be under way at once. Nothing that a policy computes depends
on who is in a batch (see :class:`~latentgym.rollouts.actor.Actor`), so that records depend on neither timing nor the
number of workers.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentgym.errors import LatentGymError
from latentgym.rollouts.actor import Actor
from latentgym.rollouts.episodes import Description, Setting
from latentgym.rollouts.processes import Post, Worker
from latentgym.rollouts.records import EpisodeRecord
from latentgym.rollouts.schedule import Schedule
from latentgym.rollouts.slots import NOWHERE, Layout, Slots

# No observation waits longer for company.
_PATIENCE_S = 0.1
# So often in a row a worker may die before its first environment is ready.
_STARTS = 3
# A process may take so long to start and make its first environment, where a step may take less.
_START_S = 300.0


@dataclasses.dataclass(eq=False)
class _Episode:
    """One attempt at an episode, in one slot.

    Attributes:
        number: its number in the schedule.
        begun: whether the policy has met it.
        filmed: whether its worker keeps frames.
        arrived_at: when its last observation arrived.
        latencies_s: seconds that each of its observations waited for its action.
    """

    number: int
    filmed: bool
    begun: bool = False
    arrived_at: float = 0.0
    latencies_s: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class _Slot:
    """One environment. ``held`` says that a thread is serving it; then nothing new begins in it."""

    number: int
    worker: Worker
    episode: _Episode | None = None
    held: bool = False


_Batch = list[tuple[_Slot, _Episode]]


class Engine:
    """Runs the episodes of a schedule in worker processes.

    Args:
        setting: how episodes are run.
        schedule: what is to be run.
        workers: number of processes W.
        batch_size: observations per batch.
        threads: threads of this process that may serve batches, if the policy is concurrent.
        on_cpu: whether inference keeps one of this machine's cores busy.
        pickled: the policy, if workers shall act by copies of it on what their own environments observe.
        step_timeout_s: a worker whose environment takes longer for one step, reset or start has hung.
        meet: called once with a description of the environments and the slots; makes the actor, or ``None`` for a
            policy that acts in the workers.
    """

    def __init__(
        self,
        setting: Setting,
        schedule: Schedule,
        *,
        workers: int,
        batch_size: int,
        threads: int,
        on_cpu: bool,
        step_timeout_s: float,
        pickled: bytes | None,
        meet: Callable[[Description, Slots], Actor | None],
    ) -> None:
        self._setting, self._schedule, self._meet = setting, schedule, meet
        self._timeout_s, self._on_cpu = step_timeout_s, on_cpu
        self._cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(workers, len(schedule))
        each = _environments(setting, workers, batch_size, threads, pickled is not None)
        each = min(each, -(-len(schedule) // workers))
        self._ranges = [range(index * each, (index + 1) * each) for index in range(workers)]
        self._each, self._batch_size, self._wanted_threads = each, batch_size, threads
        self._pickled = pickled
        self._workers: list[Worker] = []
        self._slot: list[_Slot] = []
        self._ready: collections.deque[tuple[_Slot, _Episode]] = collections.deque()
        self._memory: Slots | None = None
        self._actor: Actor | None = None
        self._post = Post()
        self._turn, self._state = threading.Lock(), threading.RLock()
        self._serving = 0
        self._failure: BaseException | None = None
        self._failed_starts = collections.Counter[int]()
        self._barren = 0
        self._checked_at = time.monotonic()
        self.restarts = self.batches = 0
        self.opened_at, self.finished_at = time.perf_counter(), 0.0
        self._cpu_from = time.process_time()
        self.latencies_s: list[float] = []
        self.cpu_s = self.worker_cpu_s = 0.0
        self._opening = 0

    @property
    def batch_size(self) -> int:
        """Observations per batch, as it turned out."""
        return self._batch_size

    def run(self) -> None:
        """Run until every episode has a record.

        Raises:
            LatentGymError: if an environment cannot be made or breaks its contract, the policy does not fit, or workers
                keep dying.
        """
        try:
            for index, slots in enumerate(self._ranges):
                worker = Worker(self._setting, index, slots)
                self._workers.append(worker)
                self._slot += [_Slot(number, worker) for number in slots]
                self._post.add(worker)
            while self._memory is None:
                self._read()
            threads = self._actor.threads if self._actor is not None else 1
            others = [threading.Thread(target=self._serve, args=(number,)) for number in range(1, threads)]
            for thread in others:
                thread.start()
            try:
                self._serve(0)
            except BaseException as error:  # Ctrl-C included: the other threads must end
                self._failure = error
            for thread in others:
                thread.join()
            if self._failure is not None:
                raise self._failure
            self.finished_at = time.perf_counter()
            self.cpu_s = time.process_time() - self._cpu_from
            self._close()
        finally:
            for worker in self._workers:
                worker.kill()
            self._post.close()
            if self._memory is not None:
                self._memory.close()

    def _close(self) -> None:
        for worker in self._workers:
            worker.tell("close")
        self.worker_cpu_s = sum(worker.close() for worker in self._workers)

    def _serve(self, thread: int) -> None:
        """Serve batches and read messages until there is nothing left to do."""
        torch.set_num_threads(1)
        try:
            while (batch := self._take() or self._wait()) is not None:
                self._answer(batch, thread)
        except Exception as error:
            self._failure = self._failure or error

    def _over(self) -> bool:
        return self._schedule.finished or self._failure is not None

    def _wait(self) -> _Batch | None:
        """Read messages until there is a batch; ``None`` at the end."""
        with self._turn:
            while not self._over():
                batch = self._take()
                if batch:
                    return batch
                self._read()
        return None

    def _take(self) -> _Batch | None:
        """The observations to serve now, if it is not better to wait for more."""
        with self._state:
            if not self._ready or self._over() or not (len(self._ready) >= self._batch_size or self._impatient()):
                return None
            ordered = self._by_worker()
            batch = ordered[: self._batch_size]
            self._ready = collections.deque(ordered[self._batch_size :])
            for slot, _ in batch:
                slot.held = True
            self._serving += 1
            return batch

    def _by_worker(self) -> _Batch:
        """What is ready, the worker with most of it first: where rows of one worker stay together, messages are few."""
        counts = collections.Counter(slot.worker.index for slot, _ in self._ready)
        first = {slot.worker.index: -place for place, (slot, _) in reversed(list(enumerate(self._ready)))}
        return sorted(
            self._ready, key=lambda entry: (counts[entry[0].worker.index], first[entry[0].worker.index]), reverse=True
        )

    def _impatient(self) -> bool:
        """Whether an incomplete batch should go: a core would idle, or an observation has waited too long."""
        busy = sum(worker.queued > 0 for worker in self._workers) + (self._serving if self._on_cpu else 0)
        if busy < self._cores and any(not slot.worker.queued for slot, _ in self._ready):
            return True
        return time.perf_counter() - min(episode.arrived_at for _, episode in self._ready) > _PATIENCE_S

    def _answer(self, batch: _Batch, thread: int) -> None:
        assert self._actor is not None
        begun = {slot.number: self._schedule.seed(episode.number) for slot, episode in batch if not episode.begun}
        actions = self._actor.act([slot.number for slot, _ in batch], begun, thread)
        now = time.perf_counter()
        with self._state:
            self._serving -= 1
            self.batches += 1
            self._send(batch, actions, now)

    def _send(self, batch: _Batch, actions: NDArray[np.float32], now: float) -> None:
        assert self._memory is not None
        moved: dict[Worker, list[int]] = {}
        for (slot, episode), action in zip(batch, actions, strict=True):
            slot.held, episode.begun = False, True
            if slot.episode is not episode:  # its worker died meanwhile
                self._begin(slot)
                continue
            episode.latencies_s.append(now - episode.arrived_at)
            self._memory.action[slot.number] = action
            moved.setdefault(slot.worker, []).append(slot.number)
        for worker, numbers in moved.items():
            worker.tell("step", numbers, moves=len(numbers))

    def _read(self) -> None:
        """Handle the messages that are there, or wait a little for some."""
        for worker, message in self._post.receive(_PATIENCE_S):
            with self._state:
                if message is None:
                    self._lost(worker, None)
                else:
                    self._handle(worker, message)
        if time.monotonic() - self._checked_at > min(1.0, self._timeout_s / 4):
            self._checked_at = time.monotonic()
            with self._state:
                self._find_hung()

    def _handle(self, worker: Worker, message: tuple[Any, ...]) -> None:
        kind = message[0]
        if kind == "hello":
            self._greet(worker, message[1])
        elif kind == "ready":
            worker.greeted, self._failed_starts[worker.index] = True, 0
            self._begin(*(self._slot[number] for number in worker.slots))
        elif kind == "error":
            raise LatentGymError(message[1])
        elif kind == "failed":
            slot = self._slot[message[1]]
            worker.queued -= 1
            self._drop(slot, message[2])
            self._begin(slot)
        else:
            now = time.perf_counter()
            self.batches += message[2]
            for number, record, texts, latencies_s in message[1]:
                # Workers that act themselves are busy to the end of an episode.
                worker.queued -= record is not None or self._pickled is None
                self._moved(self._slot[number], record, texts, latencies_s, now)

    def _greet(self, worker: Worker, description: Description) -> None:
        """A worker's first environment is ready; the first worker's tells what all are like."""
        if self._memory is None:
            size = description.contract.action_spec.size
            layout = Layout.of(description.observation_space, size, slots=len(self._slot), workers=len(self._workers))
            self._memory = Slots.share(layout)
            self._actor = self._meet(description, self._memory)
            if self._actor is not None:
                self._batch_size = self._actor.batch_size
        worker.tell("open", self._memory.layout, self._memory.name, self._batch_size, self._pickled)

    def _begin(self, *slots: _Slot) -> None:
        """Give slots of one worker their next episodes, if they can take one and there is one."""
        begun = []
        for slot in slots:
            if slot.held or slot.episode is not None or not slot.worker.greeted:
                continue
            number = self._schedule.take()
            if number is not None:
                slot.episode = _Episode(number, self._schedule.may_film(number))
                begun.append((slot.number, self._schedule.seed(number), slot.episode.filmed))
        if begun:
            slots[0].worker.tell("start", begun, moves=len(begun))

    def _moved(
        self, slot: _Slot, record: EpisodeRecord | None, texts: dict[str, Any], latencies_s: list[float], now: float
    ) -> None:
        episode = slot.episode
        assert episode is not None
        assert self._memory is not None
        self._open()
        if record is None:
            if self._pickled is None:
                self._memory.put_texts(slot.number, texts)
                episode.arrived_at = now
                self._ready.append((slot, episode))
            return
        self._barren = 0
        slot.episode = None
        episode.latencies_s += latencies_s
        self.latencies_s += episode.latencies_s
        if episode.filmed:
            slot.worker.tell("film", slot.number, self._schedule.video(episode.number, record))
        self._schedule.finish(episode.number, record.with_latencies(tuple(episode.latencies_s)))
        self._begin(slot)

    def _open(self) -> None:
        """Note the time at which every slot has moved for the first time."""
        self._opening += 1
        if self._opening == len(self._slot):
            self.opened_at, self._cpu_from = time.perf_counter(), time.process_time()

    def _drop(self, slot: _Slot, blame: str | None) -> None:
        episode, slot.episode = slot.episode, None
        if episode is not None:
            self._schedule.lose(episode.number, blame)

    def _find_hung(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            moved_at, limit_s = worker.asked_at, max(self._timeout_s, _START_S)
            if worker.greeted and self._memory is not None:
                moved_at, limit_s = max(moved_at, float(self._memory.since[worker.index])), self._timeout_s
            if now - moved_at > limit_s and (worker.queued or not worker.greeted):
                self._lost(worker, f"took more than {limit_s:g} s for one step and was stopped")

    def _lost(self, worker: Worker, hung: str | None) -> None:
        """Replace a worker that died or hung; its episodes begin again, and the one it was stepping is to blame."""
        self._post.remove(worker)
        ended = worker.kill()
        reason = f"its worker process {hung or f'died {ended}'}"
        culprit = NOWHERE if self._memory is None else int(self._memory.current[worker.index])
        if not worker.greeted:
            self._failed_starts[worker.index] += 1
        self._barren += 1
        if self._failed_starts[worker.index] >= _STARTS or self._barren > 2 * len(self._slot) + _STARTS:
            raise LatentGymError(
                f"workers for {self._setting.env_id} keep dying ({reason}): out of memory, a crash of the GL driver, "
                "or a script without 'if __name__ == \"__main__\":'; use fewer workers, or workers=0 to see the error"
            )
        lost = {id(self._slot[number]) for number in worker.slots}
        self._ready = collections.deque(entry for entry in self._ready if id(entry[0]) not in lost)
        for number in worker.slots:
            self._drop(self._slot[number], reason if number == culprit else None)
        self._replace(worker)

    def _replace(self, worker: Worker) -> None:
        if self._memory is not None:
            self._memory.current[worker.index] = NOWHERE
        self.restarts += 1
        fresh = Worker(self._setting, worker.index, worker.slots)
        self._workers[worker.index] = fresh
        for number in worker.slots:
            self._slot[number].worker = fresh
        self._post.add(fresh)
        # What was lost may be taken up at once by environments that stand idle.
        for slot in self._slot:
            self._begin(slot)


def _environments(setting: Setting, workers: int, batch_size: int, threads: int, copies: bool) -> int:
    """How many a worker steps."""
    if setting.simulator_policy:
        return 1
    if copies:
        return batch_size
    # A batch is served while another one moves; of threads that take turns at Python's lock, two serve.
    batches = 2 if threads == 1 else 3
    return max(2, -(-batches * batch_size // workers))


def percentiles_ms(latencies_s: Sequence[float]) -> tuple[float, float] | None:
    """Median and 95th percentile in milliseconds."""
    if not latencies_s:
        return None
    median, high = np.percentile(np.asarray(latencies_s), [50, 95]) * 1e3
    return float(median), float(high)
