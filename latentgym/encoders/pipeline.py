"""Streams of arrays: cut to batches of one size, and made ahead of their use in a thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

_Item = TypeVar("_Item")


def ahead(items: Iterable[_Item]) -> Iterator[_Item]:
    """Yield ``items``, each made in a thread while the caller works on the one before.

    One item is made ahead, so that memory holds two. An error of ``items`` is raised when its turn comes.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        following = pool.submit(next, iterator, end)
        while (item := following.result()) is not end:
            following = pool.submit(next, iterator, end)
            yield cast(_Item, item)


def rebatched(arrays: Iterable[NDArray[Any]], size: int) -> Iterator[NDArray[Any]]:
    """Rows of ``arrays`` in their order, ``size`` at a time; the last batch may be smaller, none is empty.

    >>> [batch.tolist() for batch in rebatched([np.arange(3), np.arange(3, 4)], 2)]
    [[0, 1], [2, 3]]
    """
    waiting: list[NDArray[Any]] = []
    for array in arrays:
        waiting.append(array)
        if sum(map(len, waiting)) < size:
            continue
        rows = np.concatenate(waiting)
        whole = len(rows) // size * size
        for start in range(0, whole, size):
            yield rows[start : start + size]
        waiting = [rows[whole:]]
    rest = np.concatenate(waiting) if waiting else np.empty(0)
    if len(rest):
        yield rest
