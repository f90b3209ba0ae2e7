"""A bounded pool of episodes that slides over data larger than memory in the course of a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from latentgym.seeding import numpy_generator

Entry = TypeVar("Entry")
Held = TypeVar("Held")


class SlidingPool(Generic[Entry, Held]):
    """Episodes in memory at each step of a training.

    All episodes are put in a seeded order. Where they fit, the pool is all of them; otherwise it is a window that
    slides once over that order in the course of the training, so that each episode is loaded once. What is held at a
    step depends on the constructor's arguments and the step alone.

    Args:
        entries: episodes, by any hashable name.
        load: reads one.
        capacity: episodes held at once, at least 1.
        steps: training steps in all.
        seed: seed of the order.
    """

    def __init__(
        self, entries: Sequence[Entry], load: Callable[[Entry], Held], *, capacity: int, steps: int, seed: int
    ) -> None:
        self.order = [entries[i] for i in numpy_generator(seed, "episode order").permutation(len(entries))]
        self.capacity = min(len(entries), max(1, capacity))
        self.held: dict[Entry, Held] = {}
        self._load, self._steps = load, steps

    def at(self, step: int) -> list[Entry]:
        """Episodes held at ``step``; what is missing is loaded and what has been passed is dropped."""
        begin = step * (len(self.order) - self.capacity) // max(1, self._steps - 1)
        window = self.order[begin : begin + self.capacity]
        kept = set(window)
        self.held = {entry: value for entry, value in self.held.items() if entry in kept}
        for entry in window:
            if entry not in self.held:
                self.held[entry] = self._load(entry)
        return window
