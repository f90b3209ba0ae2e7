from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgym.errors import LatentGymError
from latentgym.policies.conditions import instruction_features
from latentgym.policies.execution import Execution, ExecutionSettings

ALL = np.ones(2, bool)


@settings(deadline=None)
@given(horizon=st.integers(1, 5), weight=st.floats(0, 2), steps=st.integers(1, 9))
def test_ensembling_is_the_weighted_mean_of_what_every_plan_says(horizon: int, weight: float, steps: int) -> None:
    execution = Execution(ExecutionSettings(ensemble=weight), horizon, 1)
    execution.reset(ALL, None)
    plans = torch.randn(steps, 2, horizon, 1, generator=torch.Generator().manual_seed(0))
    for step in range(steps):
        found = execution.step(plans[step])
        made = [past for past in range(step + 1) if step - past < horizon]
        weights = [math.exp(-weight * place) for place in range(len(made))]  # the oldest first
        expected = sum(share * plans[past, :, step - past] for share, past in zip(weights, made, strict=True)) / sum(
            weights
        )
        torch.testing.assert_close(found, expected)


def test_chunks_are_executed_one_after_the_other_and_rows_keep_their_own_time() -> None:
    execution = Execution(ExecutionSettings(execute=2), 3, 1)
    execution.reset(ALL, None)
    plans = torch.arange(30.0).view(5, 2, 3, 1)
    assert execution.step(plans[0]).flatten().tolist() == [0, 3]
    assert not execution.due.any()
    execution.reset(np.array([False, True]), [0, 0])
    assert execution.due.tolist() == [False, True]
    assert execution.step(plans[1]).flatten().tolist() == [1, 9]
    assert execution.step(plans[2]).flatten().tolist() == [12, 10]


def test_noise_depends_on_the_rows_seed_alone() -> None:
    def draw(rows: int, row: int, seed: int) -> torch.Tensor:
        execution = Execution(ExecutionSettings(), 4, 2)
        execution.reset(np.ones(rows, bool), list(range(100, 100 + rows)))
        execution.noise()
        mask = np.zeros(rows, bool)
        mask[row] = True
        execution.reset(mask, [seed] * rows)
        return execution.noise()[row]

    assert torch.equal(draw(2, 0, 7), draw(5, 3, 7))
    assert not torch.equal(draw(2, 0, 7), draw(2, 0, 8))


@pytest.mark.parametrize("bad", [{"execute": 0}, {"execute": 5}, {"execute": 2, "ensemble": 0.1}, {"ensemble": -1.0}])
def test_settings_that_do_not_fit_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(LatentGymError, match="execut"):
        Execution(ExecutionSettings(**bad), 4, 1)  # type: ignore[arg-type]


def test_instructions_are_told_apart() -> None:
    rows = instruction_features(["open the drawer", "close the drawer", "drawer the open"])
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 1, 1])
    assert rows[0] @ rows[1] < 0.9
    assert not np.array_equal(rows[0], rows[2])
