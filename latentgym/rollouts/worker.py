"""What a rollout's worker process does: step the environments of its slots, in the order in which actions arrive.

Messages to a worker: ``("open", layout, name, batch_size, pickled)`` of the shared memory and, where it shall have a
copy, the policy; ``("start", [(slot, seed, film), …])``, ``("step", slots)``, ``("film", slot, path)`` and
``("close",)``. Messages from it: ``("hello", description)``, ``("ready",)``, ``("done", [(slot, record, texts,
latencies_s), …], batches)`` with a record where the episode is over and the number of batches of inference since the
last one, ``("failed", slot, text)`` for an exception of the simulator, ``("error", text)`` for what ends the whole
evaluation, ``("closed", cpu_s)``. A worker with a copy of the policy is told nothing of steps, and tells of the first
and the last of an episode.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from latentgym.errors import LatentGymError
from latentgym.rollouts.episodes import Description, EpisodeRunner, Film, Setting
from latentgym.rollouts.records import EpisodeRecord
from latentgym.rollouts.serving import Serving
from latentgym.rollouts.slots import NOWHERE, Slots
from latentgym.workers import follow_parent

# Finished steps are told at least this often, and at the end of every message.
_TELL_S = 0.005
# The next episode comes about so fast, if there is one; a batch without it would be padded.
_REPLY_S = 0.002
# A slot, the record of an episode that is over, texts, and latencies.
_Done = tuple[int, EpisodeRecord | None, dict[str, Any], list[float]]


def work(connection: Connection, setting: Setting, worker: int, slots: range) -> None:
    """Serve the slots until told to close; the target of a worker process."""
    follow_parent()
    # Mesa's software renderer would start threads of its own, one set per context.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    torch.set_num_threads(1)
    station = _Station(connection, setting, worker, slots)
    try:
        station.serve()
    except LatentGymError as error:
        connection.send(("error", str(error)))
    except (EOFError, ConnectionError):
        return  # nobody is listening any more
    finally:
        station.close()


class _Station:
    def __init__(self, connection: Connection, setting: Setting, worker: int, slots: range) -> None:
        self._connection, self._setting, self._worker = connection, setting, worker
        self._runners = {slot: EpisodeRunner(setting, self._beat) for slot in slots}
        self._films: dict[int, Film | None] = {}
        self._slots: Slots | None = None
        self._serving: Serving | None = None
        self._running: set[int] = set()
        self._awaits_start = False
        self._done: list[_Done] = []
        self._told_at = 0.0
        self._moving_since: float | None = None

    def serve(self) -> None:
        first = next(iter(self._runners.values()))
        try:
            env = first.env
        except LatentGymError:
            raise
        except Exception as error:
            raise LatentGymError(f"{self._setting.env_id} cannot be made: {error!r}") from error
        self._description = Description.of(env)
        self._connection.send(("hello", self._description))
        while (message := self._receive()) is None or message[0] != "close":
            if message is None:
                self._answer()
            else:
                self._handle(message)
            self._tell()
        cpu_s = 0.0 if self._moving_since is None else time.process_time() - self._moving_since
        self._connection.send(("closed", cpu_s))

    def close(self) -> None:
        for runner in self._runners.values():
            runner.close()
        if self._slots is not None:
            self._slots.detach()

    def _receive(self) -> tuple[Any, ...] | None:
        """The next message; ``None`` if there is something else to do."""
        if self._serving is not None and self._serving.waiting:
            if len(self._running) == len(self._runners):
                return None  # nothing is sent to a worker that is full
            if not self._connection.poll(_REPLY_S if self._awaits_start else 0):
                self._awaits_start = False
                return None
        message: tuple[Any, ...] = self._connection.recv()
        return message

    def _handle(self, message: tuple[Any, ...]) -> None:
        kind = message[0]
        if kind == "open":
            layout, name, batch_size, pickled = message[1:]
            self._slots = Slots.attach(layout, name)
            if pickled is not None:
                self._serving = Serving(pickled, self._setting, self._description, self._slots, batch_size)
            self._connection.send(("ready",))
        elif kind == "start":
            self._awaits_start = False
            for slot, *how in message[1]:
                self._attempt(self._start, slot, *how)
        elif kind == "film":
            film = self._films.pop(message[1])
            assert film is not None
            self._beat()
            film.write(message[2])
        else:
            self._step_all(message[1])

    def _answer(self) -> None:
        """Serve a batch by the copy of the policy, and step its environments."""
        assert self._serving is not None
        self._move()
        self._beat()
        self._step_all(self._serving.answer())

    def _step_all(self, slots: Sequence[int]) -> None:
        self._move()
        for slot in slots:
            self._attempt(self._step, slot)
            if time.monotonic() - self._told_at > _TELL_S:
                self._tell()

    def _move(self) -> None:
        if self._moving_since is None:
            self._moving_since = time.process_time()

    def _attempt(self, act: Callable[..., None], slot: int, *how: Any) -> None:
        """Let a slot move; an exception of its simulator costs the episode, not the worker."""
        assert self._slots is not None
        runner = self._runners[slot]
        self._slots.current[self._worker] = slot
        try:
            act(runner, slot, *how)
        except LatentGymError:
            raise
        except Exception as error:
            runner.discard()
            self._running.discard(slot)
            self._awaits_start = True
            self._tell()
            self._connection.send(("failed", slot, repr(error)))
        finally:
            self._slots.current[self._worker] = NOWHERE

    def _start(self, runner: EpisodeRunner, slot: int, seed: int, film: bool) -> None:
        assert self._slots is not None
        policy = self._setting.simulator_policy
        if policy is not None:
            self._move()
            record = runner.play(policy, seed, film)
            return self._end(runner, slot, record)
        texts = self._slots.put(slot, runner.start(seed, film))
        self._done.append((slot, None, texts, []))
        if self._serving is not None:
            self._running.add(slot)
            self._serving.begin(slot, seed)
        return None

    def _step(self, runner: EpisodeRunner, slot: int) -> None:
        assert self._slots is not None
        observation, over = runner.step(self._slots.action[slot].copy())
        if over:
            return self._end(runner, slot, runner.record())
        texts = self._slots.put(slot, observation)
        if self._serving is None:
            self._done.append((slot, None, texts, []))
        else:
            self._serving.arrive(slot)
        return None

    def _end(self, runner: EpisodeRunner, slot: int, record: EpisodeRecord) -> None:
        self._films[slot] = runner.take_film()
        self._running.discard(slot)
        self._awaits_start = True
        self._done.append((slot, record, {}, [] if self._serving is None else self._serving.latencies_s(slot)))

    def _tell(self) -> None:
        if self._done:
            batches = 0 if self._serving is None else self._serving.take_batches()
            self._connection.send(("done", self._done, batches))
            self._done = []
        self._told_at = time.monotonic()

    def _beat(self) -> None:
        if self._slots is not None:
            self._slots.since[self._worker] = time.monotonic()
