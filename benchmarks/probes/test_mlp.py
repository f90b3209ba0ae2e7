"""Trained readouts: all seeds and hyper-parameters of a cell in one batch beside a Python loop over the same fits.

Run with ``OMP_NUM_THREADS=1 pytest benchmarks/probes/test_mlp.py --benchmark-only``. The peer is the loop one would
write with ``torch.nn`` and ``torch.optim``; "ours, one by one" shows what batching alone does. On a GPU, where small
products leave the device idle, set ``BENCH_DEVICE=cuda``.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from latentgym.probes import MLPProbe

DEVICE = os.environ.get("BENCH_DEVICE", "cpu")
ROWS, FEATURES, ACTIONS, STEPS, BATCH = 4000, int(os.environ.get("BENCH_FEATURES", "64")), 7, 150, 256
SEEDS, RATES = 4, (1e-3, 5e-4, 2e-4, 1e-4)


def problem() -> tuple[np.ndarray, np.ndarray]:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, FEATURES))
    return x, x[:, :ACTIONS] * x[:, 1 : ACTIONS + 1] + 0.1 * rng.normal(size=(ROWS, ACTIONS))


def modules(x: np.ndarray, y: np.ndarray) -> float:
    """The same fits, one after the other."""
    train, held = slice(0, ROWS * 4 // 5), slice(ROWS * 4 // 5, ROWS)
    inputs, targets = (torch.from_numpy(v).float().to(DEVICE) for v in (x, y))
    losses = []
    for rate in RATES:
        for seed in range(SEEDS):
            generator = torch.Generator().manual_seed(seed)
            model = nn.Sequential(
                nn.Linear(FEATURES, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, ACTIONS)
            ).to(DEVICE)
            optimizer, best = torch.optim.Adam(model.parameters(), lr=rate), float("inf")
            for step in range(1, STEPS + 1):
                rows = torch.randint(train.stop, (BATCH,), generator=generator).to(DEVICE)
                optimizer.zero_grad()
                nn.functional.mse_loss(model(inputs[rows]), targets[rows]).backward()
                optimizer.step()
                if step % 50 == 0:
                    with torch.no_grad():
                        best = min(best, nn.functional.mse_loss(model(inputs[held]), targets[held]).item())
            losses.append(best)
    return min(losses)


@pytest.mark.parametrize("kind", ["batched", "ours, one by one", "torch.nn loop"])
def test_sixteen_fits(benchmark: Any, kind: str) -> None:
    x, y = problem()
    settings: dict[str, Any] = {"steps": STEPS, "batch_size": BATCH, "device": DEVICE}

    def fit() -> float:
        if kind == "batched":
            return float(MLPProbe(members=SEEDS, learning_rate=RATES, **settings).fit(x, y).validation_losses_.min())
        if kind == "torch.nn loop":
            return modules(x, y)
        probes = [
            MLPProbe(members=1, learning_rate=rate, seed=seed, **settings).fit(x, y)
            for rate in RATES
            for seed in range(SEEDS)
        ]
        return min(float(probe.validation_losses_.min()) for probe in probes)

    benchmark.pedantic(fit, rounds=1)
    benchmark.extra_info.update(fits=SEEDS * len(RATES), features=FEATURES, device=DEVICE)
