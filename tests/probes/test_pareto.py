from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentgym.errors import LatentGymError
from latentgym.probes import pareto_front, pareto_membership

points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@given(points)
def test_front_is_what_nobody_dominates(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=float).T
    for index, member in enumerate(pareto_front(x, y)):
        beaten = any(a >= x[index] and b >= y[index] and (a, b) != (x[index], y[index]) for a, b in pairs)
        assert member != beaten


def test_membership_is_the_share_of_replicates() -> None:
    first = np.array([[1.0, 2.0], [1.0, 2.0], [3.0, 2.0], [1.0, np.nan]])
    second = np.array([[1.0, 2.0], [3.0, 2.0], [1.0, 2.0], [1.0, 5.0]])
    np.testing.assert_allclose(pareto_membership(first, second), [0.75, 0.75])
    with pytest.raises(LatentGymError, match=r"\(R, N\)"):
        pareto_membership(first[0], second[0])
