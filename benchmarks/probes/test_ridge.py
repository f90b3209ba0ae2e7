"""Ridge with a λ path and grouped folds: ours beside scikit-learn's grid search and himalaya's, on one thread.

Run with ``OMP_NUM_THREADS=1 pytest benchmarks/probes --benchmark-only``. ``extra_info`` holds CPU seconds and the score
chosen, which is the same for scikit-learn and ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from latentgym.probes import MLPProbe, RidgeProbe

LAMBDAS = tuple(float(10.0**power) for power in range(-3, 7))
Problem = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module", params=[(6000, 512), (6000, 2048)], ids=["D=512", "D=2048"])
def problem(request: pytest.FixtureRequest) -> Problem:
    """Latents with a decaying spectrum, seven action dimensions, episodes of forty steps."""
    torch.set_num_threads(1)
    rows, features = request.param
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(rows, 100)) * np.arange(1, 101) ** -0.5
    x = factors @ rng.normal(size=(100, features)) + 0.3 * rng.normal(size=(rows, features))
    y = factors @ rng.normal(size=(100, 7)) + rng.normal(size=(rows, 7))
    return x.astype(np.float32), y, np.repeat(np.arange(rows // 40), 40)


def measure(benchmark: Any, fit: Callable[[], float]) -> None:
    start = time.process_time()
    score = benchmark.pedantic(fit, rounds=1)
    benchmark.extra_info.update(cpu_s=round(time.process_time() - start, 2), best_cv_r2=round(score, 8))


@pytest.mark.parametrize("search", ["grid", "climb"])
def test_ours(benchmark: Any, problem: Problem, search: Any) -> None:
    x, y, groups = problem

    def fit() -> float:
        probe = RidgeProbe(LAMBDAS, search=search, device="cpu").fit(x, y, groups)
        return float(probe.cv_scores_[probe.lambda_].mean())

    measure(benchmark, fit)


def test_scikit_learn(benchmark: Any, problem: Problem) -> None:
    x, y, groups = problem

    def fit() -> float:
        search = GridSearchCV(
            make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": LAMBDAS}, cv=GroupKFold(5), scoring="r2"
        )
        return float(search.fit(x.astype(np.float64), y, groups=groups).best_score_)

    measure(benchmark, fit)


def test_himalaya(benchmark: Any, problem: Problem) -> None:
    """Features are standardised over all rows, since himalaya has no standardisation within folds."""
    ridge = pytest.importorskip("himalaya.ridge")
    scoring = pytest.importorskip("himalaya.scoring")
    x, y, groups = problem

    def fit() -> float:
        folds = list(GroupKFold(5).split(x, y, groups))
        model = ridge.RidgeCV(alphas=LAMBDAS, cv=folds, solver_params={"score_func": scoring.r2_score})
        return float(model.fit(StandardScaler().fit_transform(x.astype(np.float64)), y).cv_scores_.mean())

    measure(benchmark, fit)


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "loop"])
def test_mlp_members(benchmark: Any, batched: bool) -> None:
    """Eight seeds of a small MLP in one batch beside a Python loop over the same fits."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2000, 64)), rng.normal(size=(2000, 3))

    def fit() -> float:
        counts = [8] if batched else [1] * 8
        probes = [
            MLPProbe(steps=100, members=count, seed=seed, device="cpu").fit(x, y) for seed, count in enumerate(counts)
        ]
        return float(np.mean([probe.validation_loss_.mean() for probe in probes]))

    measure(benchmark, fit)
