"""Policies that serve some of their rows at a time: no row minds what the others do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgym.encoders import load_encoder
from latentgym.envs.recording import record
from latentgym.policies import ConstantPolicy, Policy, train_convnet_policy, train_policy
from latentgym.policies.regression import initialise, linear
from latentgym.trajectories import Dataset

ROWS, STEPS = 3, 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return record("latentgym/TabletopReach-v0", tmp_path_factory.mktemp("rows") / "reach", episodes=5, seed=0)


def head(name: str) -> Callable[[Dataset], Policy]:
    return lambda dataset: train_policy(dataset, load_encoder("random"), head=name, steps=2)


@pytest.mark.parametrize(
    "make",
    [
        head("mlp"),
        head("act"),
        head("flow"),
        lambda dataset: train_convnet_policy(dataset, steps=1),
        lambda dataset: ConstantPolicy.fit(dataset, [0]),
    ],
    ids=["mlp", "act", "flow", "convnet", "constant"],
)
def test_rows_are_served_in_any_company(dataset: Dataset, make: Callable[[Dataset], Policy]) -> None:
    policy = make(dataset)
    episodes = [dataset.episode(index, ("pixels",)) for index in range(ROWS)]

    def observation(rows: list[int], steps: list[int]) -> dict[str, Any]:
        frames = [episodes[row].frames["pixels"][step] for row, step in zip(rows, steps, strict=True)]
        return {"pixels": np.stack(frames)}

    policy.reset(np.ones(ROWS, np.bool_), [5, 6, 7])
    together = np.stack([policy.act(observation([0, 1, 2], [step] * ROWS)) for step in range(STEPS)], axis=1)
    policy.reset(np.ones(ROWS, np.bool_), [5, 0, 7])
    for step in range(2):  # an episode of row 1 that is given up
        policy.act(observation([1], [step]), np.array([1]))
    policy.reset(np.array([False, True, False]), [0, 6, 0])
    apart: list[list[np.ndarray]] = [[] for _ in range(ROWS)]
    for rows in ([0, 2], [1], [2, 1, 0], [0, 1], [2], [0, 1, 2], [2, 0, 1], [1], [0, 2]):
        actions = policy.act(observation(rows, [len(apart[row]) for row in rows]), np.array(rows))
        for row, action in zip(rows, actions, strict=True):
            apart[row].append(action)
    np.testing.assert_allclose(np.array(apart), together, atol=1e-4)


@given(st.integers(1, 12), st.integers(1, 300), st.integers(2, 16), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_row_has_the_same_bits_wherever_it_stands(columns: int, width: int, batch: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = linear(width, columns)
    initialise(layer, generator)
    row = torch.randn(1, width, generator=generator)
    rows = row.repeat(batch, 1)
    with torch.inference_mode():
        found = layer.eval()(rows)
        assert torch.equal(found, found[:1].expand_as(found))
        torch.testing.assert_close(found, layer.train()(rows))
