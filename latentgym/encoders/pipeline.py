"""Batches of one size out of many arrays, made ahead of their use in a thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from latentgym.errors import LatentGymError

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


def gathered(
    pieces: Iterable[tuple[NDArray[Any], NDArray[np.int64]]], size: int, *, pinned: bool = False
) -> Iterator[torch.Tensor]:
    """Rows ``array[indices]`` of every piece in their order, ``size`` at a time, each copied once.

    Args:
        pieces: arrays and indices along their first axis, one row per first axis of the indices.
        size: rows per batch; the last batch may be smaller, none is empty.
        pinned: whether batches lie in page-locked memory, which a GPU copies from on its own.

    Raises:
        LatentGymError: if the arrays differ in shape or type beyond their first axis.

    >>> frames = np.array([3, 5, 7])
    >>> [batch.tolist() for batch in gathered([(frames, np.array([0, 1])), (frames, np.array([2]))], 2)]
    [[3, 5], [7]]
    """
    first: NDArray[Any] | None = None
    batch, filled = torch.empty(0), 0
    for array, indices in pieces:
        first = array if first is None else first
        if (array.shape[1:], array.dtype) != (first.shape[1:], first.dtype):
            raise LatentGymError(
                f"observations of shape {array.shape[1:]} and type {array.dtype} follow such of shape "
                f"{first.shape[1:]} and type {first.dtype}; all episodes must be alike"
            )
        start = 0
        while start < len(indices):
            if filled == 0:
                dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
                batch = torch.empty((size, *indices.shape[1:], *array.shape[1:]), dtype=dtype, pin_memory=pinned)
            count = min(size - filled, len(indices) - start)
            # Any mode but "raise" writes into ``out`` without a copy between.
            rows = indices[start : start + count]
            np.take(array, rows, axis=0, out=batch.numpy()[filled : filled + count], mode="clip")
            start, filled = start + count, filled + count
            if filled == size:
                yield batch
                filled = 0
    if filled:
        yield batch[:filled]
