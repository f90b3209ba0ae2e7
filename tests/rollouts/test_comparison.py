from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from latentgym.errors import LatentGymError
from latentgym.policies import ExpertPolicy, Policy, RandomPolicy
from latentgym.rollouts import compare_policies, evaluate, rollout_seeds
from latentgym.statistics import SequentialComparison, anytime_difference_interval

REACH = "latentgym/TabletopReach-v0"
WALK = "latentgym-tests/Walk-v0"
FAST: dict[str, Any] = {"batch_size": 5, "env_options": {"horizon": 30}}


class Still(Policy):
    """Never moves."""

    name = "still"
    needs_pixels = False

    def reset(self, mask: NDArray[np.bool_], seeds: Sequence[int] | None = None) -> None:
        """Nothing to forget."""

    def act(self, observation: Mapping[str, NDArray[Any]], rows: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
        """No motion."""
        return np.zeros((len(observation["proprio"]), 3), np.float32)


def test_a_clear_difference_stops_early_with_the_outcomes_of_evaluate() -> None:
    counted: list[tuple[int, int]] = []
    found = compare_policies(
        REACH, Still(), ExpertPolicy(), maximum=30, block=5, progress=lambda *done: counted.append(done), **FAST
    )
    assert found.verdict == "second"
    assert counted[-1] == (found.pairs, 30)
    seeds = rollout_seeds(0, REACH, 30)[: found.pairs]
    outcomes = [[r.success for r in evaluate(REACH, p, seeds, **FAST).records] for p in (Still(), ExpertPolicy())]
    assert found.successes == (sum(outcomes[0]), sum(outcomes[1]))
    test = SequentialComparison(30)
    for pair, (first, second) in enumerate(zip(*outcomes, strict=True), 1):
        assert (test.update(first=first, second=second) == "continue") == (pair < found.pairs)
    assert (found.low, found.high) == anytime_difference_interval(*outcomes)
    assert found.low <= found.difference <= found.high
    assert "the second is better" in found.describe()


def test_policies_go_by_name() -> None:
    found = compare_policies(REACH, "expert", "random", maximum=20, block=5, **FAST)
    assert found.policies == ("expert", "random actions") and found.verdict == "first"


def test_the_block_changes_nothing() -> None:
    found = [compare_policies(REACH, ExpertPolicy(), Still(), maximum=20, block=block, **FAST) for block in (3, 7)]
    assert found[0] == found[1]


def test_equals_stay_undecided_and_stop_where_nothing_could_decide() -> None:
    found = compare_policies(REACH, Still(), Still(), maximum=12, block=4, **FAST)
    assert (found.verdict, found.difference) == ("undecided", 0.0)
    assert found.pairs < 12
    assert found.low < 0 < found.high


def test_bad_choices_are_refused() -> None:
    with pytest.raises(LatentGymError, match="declare more"):
        compare_policies(REACH, Still(), RandomPolicy(), maximum=3)
    with pytest.raises(LatentGymError, match="block"):
        compare_policies(REACH, Still(), RandomPolicy(), block=0)


def test_crashes_are_counted_and_said(tmp_path: Path) -> None:
    options = {"faults": {str(seed): "raise" for seed in rollout_seeds(0, WALK, 20)[:2]}, "folder": str(tmp_path)}
    found = compare_policies(WALK, "random", "random", maximum=20, block=10, env_options=options)
    assert found.crashed == (2, 2) and found.error is not None
    assert "2 episodes of the first and 2 of the second crashed and count as failed: " in found.describe()
