"""Reading of CALVIN's step files: many small archives, in parallel and in order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.errors import CorruptDataError
from latentgym.trajectories.formats.calvin_index import PlayRange
from latentgym.trajectories.npz import read_arrays

Arrays = dict[str, NDArray[Any]]
MAX_WORKERS = 16


def default_workers() -> int:
    """Threads that read: one per core, at most `MAX_WORKERS`; inflating runs outside the interpreter lock."""
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)))


def read_steps(play: PlayRange, first: int, last: int, names: Sequence[str], workers: int) -> Arrays:
    """Arrays of the steps ``first`` … ``last``, both included, stacked along a new first axis.

    Args:
        play: the play range.
        first: number of the first step.
        last: number of the last step.
        names: arrays to read; nothing else is inflated.
        workers: threads.

    Raises:
        CorruptDataError: for the first step file that is missing, truncated or altered, or whose arrays have another
            shape or dtype than those of step ``first``.
    """
    paths = [play.step_file(step) for step in range(first, last + 1)]
    head = read_arrays(paths[0], names, paths[0])
    stacked: Arrays = {name: np.empty((len(paths), *array.shape), array.dtype) for name, array in head.items()}

    def fill(row: int) -> None:
        for name, array in (head if row == 0 else read_arrays(paths[row], names, paths[row])).items():
            _check_alike(array, head[name], name, paths[row])
            stacked[name][row] = array

    if workers == 1 or len(paths) == 1:
        for row in range(len(paths)):
            fill(row)
        return stacked
    # A pool per call costs far less than the reading, and survives neither a fork nor an error.
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(fill, range(len(paths))):
            pass
    return stacked


def read_chunks(
    play: PlayRange, names: Sequence[str], steps: int, workers: int, first: int | None = None
) -> Iterator[tuple[int, Arrays]]:
    """A play range from ``first`` on in chunks of at most ``steps`` steps, each with the number of its first step."""
    for start in range(play.first if first is None else first, play.last + 1, steps):
        yield start, read_steps(play, start, min(start + steps - 1, play.last), names, workers)


def _check_alike(array: NDArray[Any], expected: NDArray[Any], name: str, path: Path) -> None:
    if array.shape != expected.shape or array.dtype != expected.dtype:
        raise CorruptDataError(
            f"{path}: {name} is {array.dtype} {array.shape}, in the steps before {expected.dtype} {expected.shape}"
        )
