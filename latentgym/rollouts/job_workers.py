"""Jobs in worker processes, one at a time each; a job is repeated if it fails, or if its worker dies or hangs."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import multiprocessing.connection
import os
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

from latentgym.errors import LatentGymError
from latentgym.rollouts.processes import end, process_context
from latentgym.workers import follow_parent

ATTEMPTS = 2
"""How often a job is tried."""
# So often in a row, and once more for every worker, a process may die without having done a job.
_BARREN = 6

Do = Callable[[Any], Any]


@dataclasses.dataclass(eq=False)
class _Worker:
    """A process, the job that it has or gets as soon as it is ready, and since when it has started or had it."""

    process: Any
    connection: Any
    job: int
    since: float

    def kill(self) -> str:
        """End the process and say how it ended."""
        return end(self.process, self.connection)


def run_jobs(
    jobs: Sequence[Any], open_worker: Callable[[int], Do], *, workers: int, timeout_s: float
) -> Iterator[tuple[int, Any, str | None]]:
    """Do every job in a worker process.

    Args:
        jobs: what to do, to be pickled.
        open_worker: called once in each worker with its number; does a job. It is pickled itself. A ``LatentGymError``
            of either ends everything, another exception is the job's.
        workers: number of processes.
        timeout_s: seconds that the start of a worker may take, and then each of its jobs.

    Yields:
        The job's number, its result (``None`` without one), and why it failed :data:`ATTEMPTS` times, if it did; in the
        order in which they end.

    Raises:
        LatentGymError: what a worker raised, or if workers keep dying before they have done anything.
    """
    waiting, failures = collections.deque(range(len(jobs))), collections.Counter[int]()
    live: dict[int, _Worker] = {}
    barren = 0
    try:
        while waiting or live:
            for number in range(min(workers, len(live) + len(waiting))):
                if waiting and number not in live:
                    live[number] = _start(open_worker, number, waiting.popleft())
            for number, job, message in _news(live, timeout_s):
                kind, found = message
                if kind == "ready":
                    _give(live[number], job, jobs)
                    continue
                if kind == "error":
                    raise LatentGymError(found)
                barren = barren + 1 if kind == "lost" else 0
                if barren > _BARREN + workers:
                    raise LatentGymError(
                        f"workers keep dying (the last one {found}): out of memory, or a crash; use fewer"
                    )
                if kind == "lost":
                    del live[number]
                if kind == "done":
                    yield job, found, None
                else:
                    failures[job] += 1
                    if failures[job] < ATTEMPTS:
                        waiting.appendleft(job)
                    else:
                        yield job, None, found
                worker = live.get(number)
                if worker is not None and waiting:
                    _give(worker, waiting.popleft(), jobs)
                elif worker is not None:
                    live.pop(number).kill()
    finally:
        for worker in live.values():
            worker.kill()


def _start(open_worker: Callable[[int], Do], number: int, job: int) -> _Worker:
    context = process_context()
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, open_worker, number, dict(os.environ)), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours, job, time.monotonic())


def _give(worker: _Worker, job: int, jobs: Sequence[Any]) -> None:
    worker.job, worker.since = job, time.monotonic()
    with contextlib.suppress(OSError):  # a dead worker is found out when it is listened to
        worker.connection.send(jobs[job])


def _news(live: dict[int, _Worker], timeout_s: float) -> list[tuple[int, int, tuple[str, Any]]]:
    """Wait for something to happen: number of the worker, its job, and what became of it."""
    left = min(worker.since for worker in live.values()) + timeout_s - time.monotonic()
    ready = multiprocessing.connection.wait([worker.connection for worker in live.values()], max(0.0, left))
    news = []
    for number, worker in live.items():
        if worker.connection in ready:
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                message = ("lost", f"died {worker.kill()}")
            news.append((number, worker.job, message))
        elif time.monotonic() - worker.since > timeout_s:
            worker.kill()
            news.append((number, worker.job, ("lost", f"took more than {timeout_s:g} s and was stopped")))
    return news


def _serve(connection: Any, open_worker: Callable[[int], Do], number: int, environment: dict[str, str]) -> None:
    """The target of a worker process."""
    follow_parent()
    os.environ.update(environment)  # the server that forks workers knows the one that it was started with
    try:
        try:
            do = open_worker(number)
        except LatentGymError:
            raise
        except Exception as error:  # no job is to blame
            raise LatentGymError(f"a worker cannot start: {type(error).__name__}: {error}") from error
        connection.send(("ready", None))
        while True:
            connection.send_bytes(_done(do, connection.recv()))
    except LatentGymError as error:
        connection.send(("error", str(error)))
    except (EOFError, ConnectionError):
        return  # nobody is listening any more


def _done(do: Do, job: Any) -> Any:
    """What became of a job, pickled."""
    try:
        return ForkingPickler.dumps(("done", do(job)))
    except LatentGymError:
        raise
    except Exception as error:  # simulators raise anything
        return ForkingPickler.dumps(("failed", f"{type(error).__name__}: {error}"))
