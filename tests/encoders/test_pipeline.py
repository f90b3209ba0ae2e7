"""Batches made ahead: same items in the same order, errors in their turn, one item of lookahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentgym.encoders.pipeline import ahead, gathered
from latentgym.errors import LatentGymError


@given(st.lists(st.integers()))
def test_items_keep_their_order(items: list[int]) -> None:
    assert list(ahead(items)) == items


def test_the_next_item_is_made_while_one_is_used_and_no_more() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    stream = ahead(items())
    assert next(stream) == 0
    assert made[1].wait(timeout=10)
    assert not made[2].wait(timeout=0.05)
    stream.close()  # type: ignore[attr-defined]
    assert not made[3].is_set()


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LatentGymError("episode 2 is damaged")

    stream = ahead(items())
    assert next(stream) == 1
    with pytest.raises(LatentGymError, match="episode 2 is damaged"):
        next(stream)


@given(st.lists(st.integers(0, 7), max_size=8), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_batches_hold_every_row_once_in_order(lengths: list[int], size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(0, 256, (5, 2, 3), dtype=np.uint8) for _ in lengths]
    indices = [rng.integers(0, 5, (length, 2)) for length in lengths]
    pieces = list(zip(arrays, indices, strict=True))
    batches = [batch.numpy() for batch in gathered(pieces, size)]
    expected = np.concatenate([np.empty((0, 2, 2, 3), np.uint8), *(array[rows] for array, rows in pieces)])
    np.testing.assert_array_equal(np.concatenate([expected[:0], *batches]), expected)
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(0 < len(batch) <= size for batch in batches)


@pytest.mark.parametrize("other", [np.zeros((4, 3, 2), np.uint8), np.zeros((4, 2, 3), np.float32)])
def test_episodes_of_another_size_or_type_are_refused(other: np.ndarray) -> None:
    indices = np.arange(4)
    with pytest.raises(LatentGymError, match="all episodes must be alike"):
        list(gathered([(np.zeros((4, 2, 3), np.uint8), indices), (other, indices)], 3))
