"""The readouts as an outsider uses them: one interface, arrays for lists, scikit-learn's clone, streams."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import r2_score

from latentgym.errors import LatentGymError
from latentgym.probes import AttentiveProbe, MLPProbe, RidgeProbe, TransformerProbe

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 6))
Y = X[:, :2] + 0.1 * RNG.normal(size=(120, 2))
GROUPS = np.repeat(np.arange(12), 10)
SMALL: dict[str, Any] = {"steps": 2, "members": 1, "device": "cpu"}
PROBES = [
    (RidgeProbe(lambdas=np.logspace(-2, 2, 5), standardize=True, folds=5, device="auto"), X),
    (MLPProbe(learning_rate=np.array([1e-3, 1e-4]), **SMALL), X),
    (AttentiveProbe(width=16, **SMALL), X.reshape(120, 2, 3)),
    (TransformerProbe(width=16, **SMALL), X.reshape(120, 2, 3)),
]


@pytest.mark.parametrize(("probe", "x"), PROBES, ids=lambda value: type(value).__name__)
def test_every_readout_fits_predicts_scores_and_clones(probe: Any, x: np.ndarray) -> None:
    copy = clone(probe)
    assert type(copy) is type(probe)
    assert str(copy.get_params()) == str(probe.get_params())
    fitted = copy.fit(x, Y, groups=GROUPS)
    assert fitted is copy
    assert copy.predict(x).shape == Y.shape
    assert copy.score(x, Y) == pytest.approx(r2_score(Y, copy.predict(x)))


@pytest.mark.parametrize(("probe", "x"), PROBES, ids=lambda value: type(value).__name__)
def test_a_vector_of_targets_gives_a_vector(probe: Any, x: np.ndarray) -> None:
    fitted = clone(probe).fit(x, Y[:, 0], groups=GROUPS)
    assert fitted.predict(x).shape == (120,)
    assert fitted.score(x, Y[:, 0]) == pytest.approx(r2_score(Y[:, 0], fitted.predict(x)))
    np.testing.assert_array_equal(clone(probe).fit(x, Y[:, :1], groups=GROUPS).predict(x)[:, 0], fitted.predict(x))


@pytest.mark.parametrize(("probe", "x"), PROBES, ids=lambda value: type(value).__name__)
def test_rows_may_be_given_backwards(probe: Any, x: np.ndarray) -> None:
    """As a view with negative strides."""
    views, copies = (x[::-1], Y[::-1], GROUPS[::-1]), (x[::-1].copy(), Y[::-1].copy(), GROUPS[::-1].copy())
    expected = clone(probe).fit(*copies[:2], groups=copies[2]).predict(copies[0])
    np.testing.assert_array_equal(clone(probe).fit(*views[:2], groups=views[2]).predict(views[0]), expected)


def test_a_stream_of_blocks_chooses_the_same_penalty() -> None:
    whole = RidgeProbe(lambdas=np.logspace(-2, 2, 5)).fit(X, Y, groups=GROUPS)
    stream = RidgeProbe(lambdas=np.logspace(-2, 2, 5))
    for start in range(0, 120, 40):
        rows = slice(start, start + 40)
        stream.partial_fit(X[rows], Y[rows], GROUPS[rows])
    assert stream.finalize().lambda_ == whole.lambda_
    np.testing.assert_allclose(stream.predict(X), whole.predict(X), rtol=1e-10)


@pytest.mark.parametrize("dtype", [object, str])
def test_groups_may_be_names(dtype: type) -> None:
    """A column of a table holds its strings as objects."""
    names = np.array([f"episode-{group:02d}" for group in GROUPS], dtype=dtype)
    for probe in (RidgeProbe(), MLPProbe(**SMALL)):
        np.testing.assert_array_equal(
            clone(probe).fit(X, Y, groups=names).predict(X), probe.fit(X, Y, groups=GROUPS).predict(X)
        )


def test_single_and_double_precision_features_give_one_readout() -> None:
    x = X.astype(np.float32)
    single, double = (RidgeProbe(device="cpu").fit(values, Y, groups=GROUPS) for values in (x, x.astype(np.float64)))
    assert single.lambda_ == double.lambda_
    np.testing.assert_allclose(single.predict(x), double.predict(x), rtol=1e-6)


@pytest.mark.parametrize("lambdas", [[], [1.0, 0.1], [0.0, 1.0], [np.nan], [1.0, np.inf], np.array([-1.0, 1.0])])
def test_penalties_that_make_no_sense_are_refused(lambdas: Any) -> None:
    with pytest.raises(LatentGymError, match="lambdas"):
        RidgeProbe(lambdas=lambdas)
