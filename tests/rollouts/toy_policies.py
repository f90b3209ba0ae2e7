"""Policies that worker processes can import."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from latentgym.policies import Policy
from latentgym.seeding import numpy_generator


class Wanderer(Policy):
    """Draws its actions, and pushes on where it went before: its history and its generators belong to episodes."""

    name, needs_pixels, concurrent = "wanderer", False, True

    def __init__(self) -> None:
        self.sizes: set[int] = set()

    def reset(self, mask: np.ndarray, seeds: Sequence[int] | None = None) -> None:
        if not hasattr(self, "last") or len(self.last) != len(mask):
            self.last = np.zeros((len(mask), 2), np.float32)
            self.generators = [numpy_generator(0)] * len(mask)
        for row in np.flatnonzero(mask):
            self.last[row] = 0
            self.generators[row] = numpy_generator(0 if seeds is None else seeds[row], "wander")

    def act(self, observation: Mapping[str, np.ndarray], rows: np.ndarray | None = None) -> np.ndarray:
        assert rows is not None
        self.sizes.add(len(observation["state"]))
        noise = np.stack([self.generators[row].standard_normal(2) for row in rows]).astype(np.float32)
        self.last[rows] = np.clip(0.8 * self.last[rows] + 0.3 * noise + 0.1 * observation["state"][:, :2], -1, 1)
        return self.last[rows].copy()


class Nowhere(Wanderer):
    """Acts badly from the third step of an episode on."""

    def act(self, observation: Mapping[str, np.ndarray], rows: np.ndarray | None = None) -> np.ndarray:
        actions = super().act(observation, rows)
        actions[observation["state"][:, 1] >= 2] = np.nan
        return actions


class Faulty(Wanderer):
    """Fails at the fourth step of an episode."""

    def act(self, observation: Mapping[str, np.ndarray], rows: np.ndarray | None = None) -> np.ndarray:
        if (observation["state"][:, 1] == 3).any():
            raise ZeroDivisionError("no way to go")
        return super().act(observation, rows)


class Slanted(Wanderer):
    """Goes a little further the later in a batch a row stands."""

    def act(self, observation: Mapping[str, np.ndarray], rows: np.ndarray | None = None) -> np.ndarray:
        actions = super().act(observation, rows)
        return actions + 1e-4 * np.arange(len(actions), dtype=np.float32)[:, None]


class SlowToOpen(Wanderer):
    """Takes a while where it is unpickled."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        time.sleep(3)
        self.__dict__.update(state)
