"""Worker processes as the process that started them sees them: start, talk to, find dead or hung, replace."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import selectors
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from latentgym.errors import LatentGymError
from latentgym.rollouts.episodes import Setting
from latentgym.rollouts.worker import work

_CLOSE_S = 10.0


@functools.cache
def process_context() -> Any:
    """How workers start: GL contexts and threads do not survive a fork, so from a clean server or from nothing."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    return context


def end(process: Any, connection: Connection) -> str:
    """End a process, if it is not dead yet, and the connection to it; say how it ended."""
    process.kill()
    process.join()
    connection.close()
    code = process.exitcode
    return f"by signal {-code}" if code is not None and code < 0 else f"with exit status {code}"


class Worker:
    """One worker process.

    Attributes:
        index: its number.
        slots: the slots that it serves.
        greeted: whether its first environment is ready, and its copy of the policy if it has one.
        queued: environments that it has been told to move and has not told of.
        asked_at: when it was last told something after a rest, in seconds of ``time.monotonic()``.
    """

    def __init__(self, setting: Setting, index: int, slots: range) -> None:
        self.index, self.slots = index, slots
        self.greeted, self.queued = False, 0
        self.asked_at = time.monotonic()
        self.connection: Connection
        self.connection, theirs = process_context().Pipe()
        self._process = process_context().Process(target=work, args=(theirs, setting, index, slots), daemon=True)
        try:
            self._process.start()
        except (OSError, AttributeError, TypeError, ValueError) as error:  # the latter: what cannot be pickled
            raise LatentGymError(
                f"a worker process for {setting.env_id} cannot be started: {error}; use workers=0, or an environment "
                "and policy that can be imported and pickled"
            ) from error
        finally:
            theirs.close()

    def tell(self, *message: Any, moves: int = 0) -> None:
        """Send a message that moves so many environments; a dead worker is found out elsewhere."""
        if moves and not self.queued:
            self.asked_at = time.monotonic()
        self.queued += moves
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def kill(self) -> str:
        """End the process, if it is not dead yet; say how it ended."""
        return end(self._process, self.connection)

    def close(self) -> float:
        """Let the process finish and end; its CPU-seconds, 0 if it does not say."""
        cpu_s = 0.0
        with contextlib.suppress(OSError, EOFError):
            while self.connection.poll(_CLOSE_S):
                message = self.connection.recv()
                if message[0] == "closed":
                    cpu_s = message[1]
                    break
        self._process.join(_CLOSE_S)
        self.kill()
        return cpu_s


class Post:
    """Messages of several workers, in the order in which they arrive."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def add(self, worker: Worker) -> None:
        """Listen to a worker."""
        self._selector.register(worker.connection, selectors.EVENT_READ, worker)

    def remove(self, worker: Worker) -> None:
        """Listen to it no more; before its connection is closed."""
        self._selector.unregister(worker.connection)

    def receive(self, timeout_s: float) -> Iterator[tuple[Worker, tuple[Any, ...] | None]]:
        """Messages that are there, or arrive in time; ``None`` from a worker that is dead."""
        for key, _ in self._selector.select(timeout_s):
            try:
                message = key.data.connection.recv()
            except (EOFError, OSError):
                message = None
            yield key.data, message

    def close(self) -> None:
        """Listen to nobody."""
        self._selector.close()
