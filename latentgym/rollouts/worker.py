"""What a rollout's worker process does: step the environments of its slots, in the order in which actions arrive.

Messages to a worker: ``("open", layout, name)`` of the shared memory, ``("start", [(slot, seed, film), …])``,
``("step", slots)``, ``("film", slot, path)`` and ``("close",)``. Messages from it: ``("hello", description)``,
``("done", [(slot, record, texts), …])`` with a record where the episode is over, ``("failed", slot, text)`` for an
exception of the simulator, ``("error", text)`` for what ends the whole evaluation, ``("closed", cpu_s)``.
"""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from typing import Any

import torch

from latentgym.errors import LatentGymError
from latentgym.rollouts.episodes import Description, EpisodeRunner, Film, Observation, Setting
from latentgym.rollouts.slots import NOWHERE, Slots
from latentgym.workers import follow_parent

# Finished steps are told at least this often, and at the end of every message.
_TELL_S = 0.005


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
        self._done: list[tuple[int, Any, dict[str, Any]]] = []
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
        self._connection.send(("hello", Description.of(env)))
        while (message := self._connection.recv())[0] != "close":
            self._handle(message)
            self._tell()
        cpu_s = 0.0 if self._moving_since is None else time.process_time() - self._moving_since
        self._connection.send(("closed", cpu_s))

    def close(self) -> None:
        for runner in self._runners.values():
            runner.close()
        if self._slots is not None:
            self._slots.detach()

    def _handle(self, message: tuple[Any, ...]) -> None:
        kind = message[0]
        if kind == "open":
            self._slots = Slots.attach(message[1], message[2])
        elif kind == "start":
            for slot, *how in message[1]:
                self._attempt(slot, lambda runner, slot=slot, how=how: self._start(runner, slot, *how))
        elif kind == "film":
            film = self._films.pop(message[1])
            assert film is not None
            film.write(message[2])
        else:
            if self._moving_since is None:
                self._moving_since = time.process_time()
            for slot in message[1]:
                self._attempt(slot, lambda runner, slot=slot: self._step(runner, slot))
                if time.monotonic() - self._told_at > _TELL_S:
                    self._tell()

    def _attempt(self, slot: int, act: Any) -> None:
        """Let a slot move; an exception of its simulator costs the episode, not the worker."""
        assert self._slots is not None
        runner = self._runners[slot]
        self._slots.current[self._worker] = slot
        try:
            self._done.append((slot, *act(runner)))
        except LatentGymError:
            raise
        except Exception as error:
            runner.discard()
            self._tell()
            self._connection.send(("failed", slot, repr(error)))
        finally:
            self._slots.current[self._worker] = NOWHERE

    def _start(self, runner: EpisodeRunner, slot: int, seed: int, film: bool) -> tuple[Any, dict[str, Any]]:
        policy = self._setting.simulator_policy
        if policy is None:
            return None, self._put(slot, runner.start(seed, film))
        if self._moving_since is None:
            self._moving_since = time.process_time()
        record = runner.play(policy, seed, film)
        self._films[slot] = runner.take_film()
        return record, {}

    def _step(self, runner: EpisodeRunner, slot: int) -> tuple[Any, dict[str, Any]]:
        assert self._slots is not None
        observation, over = runner.step(self._slots.action[slot].copy())
        if not over:
            return None, self._put(slot, observation)
        self._films[slot] = runner.take_film()
        return runner.record(), {}

    def _put(self, slot: int, observation: Observation) -> dict[str, Any]:
        assert self._slots is not None
        return self._slots.put(slot, observation)

    def _tell(self) -> None:
        if self._done:
            self._connection.send(("done", self._done))
            self._done = []
        self._told_at = time.monotonic()

    def _beat(self) -> None:
        if self._slots is not None:
            self._slots.since[self._worker] = time.monotonic()
