from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from latentgym.encoders import load_encoder
from latentgym.policies import Policy
from latentgym.rollouts.actor import Actor, default_batch_size
from latentgym.rollouts.slots import Layout, Slots

SPACE = spaces.Dict({"state": spaces.Box(-1, 1, (2,), np.float32)})


class Sum(Policy):
    """Sums what it has seen per row; ``tilt`` adds to what stands at one place of a batch."""

    needs_pixels, concurrent = False, True

    def __init__(self, tilt: float = 0.0) -> None:
        self.tilt, self.seeds = tilt, dict[int, int]()

    def reset(self, mask: np.ndarray, seeds: Sequence[int] | None = None) -> None:
        if not hasattr(self, "total") or len(self.total) != len(mask):
            self.total = np.zeros((len(mask), 2), np.float32)
        self.total[mask] = 0

    def act(self, observation: Mapping[str, np.ndarray], rows: np.ndarray | None = None) -> np.ndarray:
        assert rows is not None
        assert len(set(rows.tolist())) == len(rows)
        self.total[rows] += observation["state"]
        actions = self.total[rows].copy()
        if len(actions) > 2:
            actions[2] += self.tilt
        return actions


def slots_of(count: int) -> Slots:
    slots = Slots(Layout.of(SPACE, 2, slots=count))
    for slot in range(count):
        slots.put(slot, {"state": np.full(2, slot + 1, np.float32)})
    return slots


def test_short_batches_are_filled_up_by_rows_that_serve_nobody() -> None:
    policy, slots = Sum(), slots_of(5)
    actor = Actor(policy, slots, "env", batch_size=4, threads=2)
    assert actor.threads == 2
    assert policy.total.shape == (5 + 2 * 4, 2)
    assert actor.act([3, 1], {3: 0, 1: 0}).tolist() == [[4, 4], [2, 2]]
    assert actor.act([1, 0, 2, 3], {0: 0, 2: 0}, thread=1).tolist() == [[4, 4], [1, 1], [3, 3], [8, 8]]
    assert actor.act([1], {1: 0}).tolist() == [[2, 2]]


@pytest.mark.parametrize("batch_size", [3, 4, 7])
def test_a_policy_that_minds_its_place_is_served_in_smaller_batches(batch_size: int) -> None:
    with pytest.warns(UserWarning, match=f"different places of a batch of {batch_size}; it is served in batches of 2"):
        actor = Actor(Sum(tilt=1e-6), slots_of(3), "env", batch_size=batch_size)
    assert actor.batch_size == 2
    assert actor.act([2], {2: 0}).tolist() == [[3, 3]]


def test_batches_are_small_where_padding_is_dear() -> None:
    policy: Any = Sum()
    assert default_batch_size(policy) == 4
    policy.encoder = load_encoder("random")
    assert default_batch_size(policy) == 4
    spec = dataclasses.replace(policy.encoder.spec, parameters=22_000_000)
    policy.encoder.spec = spec
    assert default_batch_size(policy) == 1
    policy.encoder.device = torch.device("cuda")
    assert default_batch_size(policy) == 16
