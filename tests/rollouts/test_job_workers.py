"""Jobs in worker processes: none is lost, whatever happens to the workers."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentgym.errors import LatentGymError
from latentgym.rollouts.job_workers import run_jobs

Job = tuple[int, str]


def open_worker(folder: Path, number: int) -> Callable[[Job], Any]:
    """Does as a job says, the first time only unless it says always."""
    if (folder / "refuse").exists():
        raise LatentGymError("no such simulator")
    if (folder / "break").exists():
        raise ValueError("no such file")
    if (folder / "die").exists():
        os._exit(3)

    def do(job: Job) -> Any:
        index, what = job
        mark = folder / f"{index}"
        if what and (not mark.exists() or "always" in what):
            mark.touch()
            if "kill" in what:
                os.kill(os.getpid(), signal.SIGKILL)
            if "hang" in what:
                time.sleep(1000)
            if "refuse" in what:
                raise LatentGymError("refused")
            if "lambda" in what:
                return lambda: 0
            raise ValueError(what)
        return index * index

    return do


def run(
    folder: Path, *whats: str, workers: int = 2, timeout_s: float = 120.0
) -> dict[int, tuple[int | None, str | None]]:
    jobs = list(enumerate(whats))
    found = run_jobs(jobs, functools.partial(open_worker, folder), workers=workers, timeout_s=timeout_s)
    return {number: (result, problem) for number, result, problem in found}


@pytest.mark.parametrize("workers", [1, 3])
def test_jobs_that_fail_once_are_repeated(workers: int, tmp_path: Path) -> None:
    found = run(tmp_path, "", "kill", "raise", "", workers=workers)
    assert found == {index: (index * index, None) for index in range(4)}


def test_jobs_that_fail_twice_are_reported(tmp_path: Path) -> None:
    found = run(tmp_path, "kill always", "", "raise always", "")
    assert found[1] == (1, None) and found[3] == (9, None)
    assert found[0] == (None, "died by signal 9") and found[2] == (None, "ValueError: raise always")


def test_a_hung_worker_is_stopped_and_its_job_repeated(tmp_path: Path) -> None:
    assert run(tmp_path, "hang", "", timeout_s=12.0) == {0: (0, None), 1: (1, None)}


def test_clear_errors_end_everything(tmp_path: Path) -> None:
    with pytest.raises(LatentGymError, match="refused"):
        run(tmp_path, "", "refuse")
    (tmp_path / "refuse").touch()
    with pytest.raises(LatentGymError, match="no such simulator"):
        run(tmp_path, "", "")


def test_what_cannot_be_opened_or_sent_is_named(tmp_path: Path) -> None:
    found = run(tmp_path, "lambda always", "x" * 2_000_000)
    assert found[0][0] is None and "pickle" in str(found[0][1])
    (tmp_path / "break").touch()
    with pytest.raises(LatentGymError, match="a worker cannot start: ValueError: no such file"):
        run(tmp_path, "")


def test_workers_that_only_die_are_given_up(tmp_path: Path) -> None:
    (tmp_path / "die").touch()
    with pytest.raises(LatentGymError, match=r"keep dying \(the last one died with exit status 3\)"):
        run(tmp_path, *[""] * 20)
