"""Ridge with a λ path, grouped folds and several horizons: ours beside scikit-learn's grid search and himalaya's.

Same rows, penalties, folds and one thread for everybody. Run one size at a time, for instance

    OMP_NUM_THREADS=1 BENCH_FEATURES=1024 pytest benchmarks/probes/test_ridge.py --benchmark-only

Sizes come from the environment: ``BENCH_ROWS`` (20000), ``BENCH_FEATURES`` (1024), ``BENCH_HORIZONS`` (1,4) and
``BENCH_LAMBDAS`` (10 penalties). ``extra_info`` holds CPU seconds and the score chosen, the same for everybody: the
comparison with himalaya is on features standardised beforehand, since it has no standardisation within folds.
scikit-learn's time is proportional to the number of penalties, so that a shorter path measures a long one; himalaya's
is proportional to the folds it is given, ``BENCH_HIMALAYA_FOLDS`` (5).
"""

from __future__ import annotations

import os
import subprocess
import sys
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

from latentgym.probes import RidgeProbe

ROWS = int(os.environ.get("BENCH_ROWS", "20000"))
FEATURES = int(os.environ.get("BENCH_FEATURES", "1024"))
HORIZONS = [int(k) for k in os.environ.get("BENCH_HORIZONS", "1,4").split(",")]
LAMBDAS = tuple(float(10.0**power) for power in range(-3, 7))[-int(os.environ.get("BENCH_LAMBDAS", "10")) :]
ACTIONS, EPISODE = 7, 40
Problem = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Pairs of latents with a decaying spectrum, seven action dimensions, episodes of forty steps, by horizon."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    rows, half = ROWS + max(HORIZONS), FEATURES // 2
    factors = rng.normal(size=(rows, 100)).astype(np.float32) * np.arange(1, 101, dtype=np.float32) ** -0.5
    latents = factors @ rng.normal(size=(100, half)).astype(np.float32)
    latents += 0.3 * rng.normal(size=latents.shape).astype(np.float32)
    groups = np.arange(ROWS) // EPISODE
    problem = []
    for k in HORIZONS:
        moved = factors[k : k + ROWS] - factors[:ROWS]
        y = moved @ rng.normal(size=(100, ACTIONS)) + rng.normal(size=(ROWS, ACTIONS))
        problem.append((np.concatenate([latents[:ROWS], latents[k : k + ROWS]], axis=1), y, groups))
    return problem


def measure(benchmark: Any, fit: Callable[[], float]) -> None:
    start = time.process_time()
    score = benchmark.pedantic(fit, rounds=1)
    benchmark.extra_info.update(
        cpu_s=round(time.process_time() - start, 2), best_cv_r2=round(score, 8), rows=ROWS, features=FEATURES,
        horizons=HORIZONS, lambdas=len(LAMBDAS),
    )  # fmt: skip
    print(f"{benchmark.name}: {benchmark.extra_info}")


@pytest.mark.parametrize("search", ["grid", "climb"])
def test_ours(benchmark: Any, problem: Problem, search: Any) -> None:
    def fit() -> float:
        probes = [RidgeProbe(LAMBDAS, search=search, device="cpu").fit(*one) for one in problem]
        return float(np.mean([probe.cv_scores_[probe.lambda_].mean() for probe in probes]))

    measure(benchmark, fit)


def test_scikit_learn(benchmark: Any, problem: Problem) -> None:
    def fit() -> float:
        scores = []
        for x, y, groups in problem:
            search = GridSearchCV(
                make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": LAMBDAS}, cv=GroupKFold(5), scoring="r2"
            )
            scores.append(search.fit(x.astype(np.float64), y, groups=groups).best_score_)
        return float(np.mean(scores))

    measure(benchmark, fit)


def test_himalaya(benchmark: Any, problem: Problem) -> None:
    """himalaya chooses a penalty per target; so does the probe that its scores are checked against."""
    reason = "the peer is not installed: pip install himalaya==0.4.11"
    ridge = pytest.importorskip("himalaya.ridge", reason=reason)
    scoring = pytest.importorskip("himalaya.scoring", reason=reason)
    used = int(os.environ.get("BENCH_HIMALAYA_FOLDS", "5"))
    scaled = [(StandardScaler().fit_transform(x.astype(np.float64)), y, groups) for x, y, groups in problem]
    found = []

    def fit() -> float:
        for x, y, groups in scaled:
            folds = list(GroupKFold(5).split(x, y, groups))[:used]
            # One penalty at a time: for all ten, its products would take ten times the memory of the features.
            settings = {"score_func": scoring.r2_score, "n_alphas_batch": 1}
            model = ridge.RidgeCV(alphas=LAMBDAS, fit_intercept=True, cv=folds, solver_params=settings)
            found.append(model.fit(x, y).cv_scores_)
        return float(np.mean(found))

    measure(benchmark, fit)
    benchmark.extra_info.update(folds=used)
    if used == 5:
        for (x, y, groups), scores in zip(scaled, found, strict=True):
            probe = RidgeProbe(LAMBDAS, standardize=False, target_groups=[[q] for q in range(ACTIONS)], device="cpu")
            probe.fit(x, y, groups)
            own = [probe.cv_scores_[penalty][q] for q, penalty in enumerate(probe.lambdas_)]
            np.testing.assert_allclose(scores, own, rtol=1e-8)


_STREAM = """
import resource, sys
import numpy as np, torch
from latentgym.probes import RidgeProbe
rows, features = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
rng = np.random.default_rng(0)
probe = RidgeProbe(device="cpu").plan_folds(np.arange(rows) // 40)
for start in range(0, rows, 4000):
    x = rng.standard_normal((4000, features), dtype=np.float32)
    probe.partial_fit(x, x[:, :7], np.arange(start, start + 4000) // 40)
probe.finalize()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.parametrize("rows", [20_000, 200_000])
def test_peak_memory_does_not_grow_with_rows(benchmark: Any, rows: int) -> None:
    """Peak resident memory in MiB of a process that streams rows through a probe; compare the two lines."""

    def fit() -> float:
        command = [sys.executable, "-c", _STREAM, str(rows), str(FEATURES)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    peak = benchmark.pedantic(fit, rounds=1)
    benchmark.extra_info.update(peak_mib=round(peak), rows=rows, features=FEATURES)
    print(f"{benchmark.name}: {benchmark.extra_info}")
