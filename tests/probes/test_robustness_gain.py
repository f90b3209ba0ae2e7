from __future__ import annotations

import numpy as np
import pytest

from latentgym.envs.recording import record
from latentgym.errors import LatentGymError
from latentgym.probes.robustness import robustness
from latentgym.probes.robustness_gain import MEAN_CONDITION, robustness_gain

OPTIONS = {"folds": 2, "replicates": 50}
CONDITIONS = ("noise_015", "blur_11")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return record("latentgym/TabletopReach-v0", tmp_path_factory.mktemp("gain") / "data", episodes=12, seed=0)


def reductions(result):
    return {row.condition: row for row in result.rows if (row.metric, row.subset) == ("r2_drop_reduction", "all")}


def test_an_encoder_against_itself_gains_exactly_nothing(dataset):
    found = reductions(robustness_gain(dataset, "random", "random", conditions=CONDITIONS, **OPTIONS))
    assert set(found) == {*CONDITIONS, MEAN_CONDITION}
    assert all(row.value == row.low == row.high == 0.0 for row in found.values())


def test_differences_are_those_of_the_drops_paired_by_episode(dataset):
    result = robustness_gain(dataset, "random", "random:1", conditions=CONDITIONS, **OPTIONS)
    one, two = (
        robustness(dataset, name, conditions=CONDITIONS, stresses=(), **OPTIONS) for name in ("random", "random:1")
    )
    found, drops = reductions(result), []
    for condition in CONDITIONS:
        before, after = (
            next(r for r in each.rows if (r.metric, r.subset, r.condition) == ("r2_drop", "all", condition))
            for each in (one, two)
        )
        assert found[condition].value == pytest.approx(before.value - after.value)
        assert found[condition].encoder == after.encoder and found[condition].n == after.n
        key = f"r2_drop|ridge|pair|1|all|{condition}"
        drops.append(one.replicates[key] - two.replicates[key])
    low, high = np.quantile(np.mean(drops, axis=0), [0.025, 0.975])
    assert (found[MEAN_CONDITION].low, found[MEAN_CONDITION].high) == pytest.approx((low, high))
    assert found[MEAN_CONDITION].value == pytest.approx(np.mean([found[c].value for c in CONDITIONS]))


def test_no_condition_is_refused(dataset):
    with pytest.raises(LatentGymError, match="at least one corruption"):
        robustness_gain(dataset, "random", "random:1", conditions=())
