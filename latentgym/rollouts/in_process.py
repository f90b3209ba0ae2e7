"""Rollouts in this process, one batch of environments; the same records as with workers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch

from latentgym.errors import LatentGymError
from latentgym.policies.contract import Policy
from latentgym.rollouts.actor import Actor
from latentgym.rollouts.episodes import Description, EpisodeRunner, Setting
from latentgym.rollouts.schedule import Schedule
from latentgym.rollouts.slots import Layout, Slots


class InProcess:
    """Runs the episodes of a schedule one batch at a time.

    Args:
        setting: how episodes are run.
        schedule: what is to be run.
        batch_size: environments, and observations per batch.
        meet: called once with a description of the environments and the slots; makes the actor, or ``None`` for a
            policy that acts on the environments themselves.
    """

    def __init__(
        self,
        setting: Setting,
        schedule: Schedule,
        *,
        batch_size: int,
        meet: Callable[[Description, Slots], Actor | None],
    ) -> None:
        self._setting, self._schedule, self._meet = setting, schedule, meet
        count = 1 if setting.simulator_policy else min(batch_size, len(schedule))
        self._runners = [EpisodeRunner(setting) for _ in range(count)]
        self._episodes: list[int | None] = [None] * count
        self._latencies: list[list[float]] = [[] for _ in range(count)]
        self._filmed = [False] * count
        self.batch_size, self.batches = batch_size, 0
        self.opened_at = self.finished_at = 0.0
        self._cpu_from = self.cpu_s = self.worker_cpu_s = 0.0
        self.restarts = 0
        self.latencies_s: list[float] = []

    def run(self) -> None:
        """Run until every episode has a record.

        Raises:
            LatentGymError: if an environment cannot be made or breaks its contract, or the policy does not fit.
        """
        with contextlib.ExitStack() as stack:
            for runner in self._runners:
                stack.callback(runner.close)
            description = Description.of(self._runners[0].env)
            size = description.contract.action_spec.size
            slots = Slots(Layout.of(description.observation_space, size, slots=len(self._runners)))
            actor = self._meet(description, slots)
            policy = self._setting.simulator_policy
            if policy is not None:
                self._open()
                self._play(policy)
            else:
                assert actor is not None
                self.batch_size = actor.batch_size
                self._act(actor, slots)
            self.finished_at = time.perf_counter()
            self.cpu_s = time.process_time() - self._cpu_from

    def _open(self) -> None:
        self.opened_at, self._cpu_from = time.perf_counter(), time.process_time()

    def _play(self, policy: Policy) -> None:
        while (number := self._schedule.take()) is not None:
            self._episodes[0] = number
            self._filmed[0] = self._schedule.may_film(number)
            with self._attempt(0):
                self._runners[0].play(policy, self._schedule.seed(number), self._filmed[0])
            if self._episodes[0] is not None:
                self._finish(0)

    def _act(self, actor: Actor, slots: Slots) -> None:
        begun = self._begin(slots)
        self._open()
        while not self._schedule.finished:
            begun |= self._begin(slots)
            active = [slot for slot, number in enumerate(self._episodes) if number is not None]
            for start in range(0, len(active), actor.batch_size):
                batch = active[start : start + actor.batch_size]
                before = time.perf_counter()
                actions = actor.act(batch, {slot: seed for slot, seed in begun.items() if slot in batch})
                latency = time.perf_counter() - before
                self.batches += 1
                for slot, action in zip(batch, actions, strict=True):
                    self._latencies[slot].append(latency)
                    over = False
                    with self._attempt(slot):
                        observation, over = self._runners[slot].step(action)
                        if not over:
                            slots.put(slot, observation)
                    if over:
                        self._finish(slot)
            begun = {}

    def _begin(self, slots: Slots) -> dict[int, int]:
        """Begin an episode in every slot that is free; slot to seed."""
        begun = {}
        for slot, runner in enumerate(self._runners):
            while self._episodes[slot] is None and (number := self._schedule.take()) is not None:
                self._episodes[slot], self._latencies[slot] = number, []
                self._filmed[slot] = self._schedule.may_film(number)
                begun[slot] = self._schedule.seed(number)
                with self._attempt(slot):
                    slots.put(slot, runner.start(begun[slot], self._filmed[slot]))
        return {slot: seed for slot, seed in begun.items() if self._episodes[slot] is not None}

    @contextlib.contextmanager
    def _attempt(self, slot: int) -> Iterator[None]:
        """An exception of a simulator costs the episode, and its environment is made anew."""
        try:
            yield
        except LatentGymError:
            raise
        except Exception as error:
            number, self._episodes[slot] = self._episodes[slot], None
            self._runners[slot].discard()
            assert number is not None
            self._schedule.lose(number, repr(error))

    def _finish(self, slot: int) -> None:
        number, runner = self._episodes[slot], self._runners[slot]
        assert number is not None
        record, latencies = runner.record(), self._latencies[slot]
        film = runner.take_film()
        if film is not None:
            film.write(self._schedule.video(number, record))
        self._episodes[slot] = None
        self.latencies_s += latencies
        self._schedule.finish(number, record.with_latencies(tuple(latencies)))


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """One torch thread, as in worker processes: results must not depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
