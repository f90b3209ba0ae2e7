"""Small recorded data sets whose actions can, or cannot, be read off the observations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentgym.encoders import FeatureCache
from latentgym.trajectories import ActionSpec, Dataset, Episode, Provenance, create_store, open_dataset

SPEC = ActionSpec(
    names=("x", "y", "grip"),
    frame="world",
    mode="delta",
    units=("m", "m", "1"),
    scale=(0.1, 0.1, 1.0),
    low=(-1.0, -1.0, -1.0),
    high=(1.0, 1.0, 1.0),
    translation=(0, 1),
    gripper=(2,),
    gripper_close_sign=-1,
)


def episode(seed: int, steps: int, constant_grip: bool) -> Episode:
    """A point that moves by its action; the state is the point, the frames show it, proprioception is noise."""
    rng = np.random.default_rng(seed)
    action = np.clip(rng.normal(0, 0.4, (steps, 3)), -1, 1).astype(np.float32)
    action[:, 2] = 1.0 if constant_grip else np.sign(action[:, 2])
    state = np.concatenate([rng.normal(size=(1, 3)), action]).cumsum(axis=0).astype(np.float32)
    frames = np.zeros((steps + 1, 16, 16, 3), np.uint8)
    frames[np.arange(steps + 1), (np.abs(state[:, 0]) * 4).astype(int) % 16] = 200
    flags = np.zeros(steps, np.bool_)
    return Episode(
        frames={"pixels": frames},
        action=action,
        proprio=rng.normal(size=(steps + 1, 4)).astype(np.float32),
        state=state,
        sim_state=np.zeros((steps + 1, 0)),
        reward=np.zeros(steps, np.float32),
        terminated=flags,
        truncated=np.arange(steps) == steps - 1,
        success=flags,
        random_action=np.full(steps, seed % 2 == 0),
        seed=seed,
        policy="random" if seed % 2 == 0 else "expert",
        env_id="test/Point-v0",
    )


@pytest.fixture(scope="session")
def action_spec() -> ActionSpec:
    """Two translations and a gripper."""
    return SPEC


@pytest.fixture(scope="session")
def make_dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Dataset]:
    def make(lengths: tuple[int, ...] = (12,) * 30, constant_grip: bool = False) -> Dataset:
        path: Path = tmp_path_factory.mktemp("data") / "points"
        settings: dict[str, Any] = {"cameras": ("pixels",), "control_hz": 10.0, "horizon": max(lengths)}
        provenance = Provenance(versions={}, gl={}, seed=0, command="", revision="")
        store = create_store(
            path,
            env_id="test/Point-v0",
            action_spec=SPEC,
            provenance=provenance,
            settings={"episodes": len(lengths)},
            **settings,
        )
        for index, steps in enumerate(lengths):
            store.write(index, episode(index, steps, constant_grip))
        return open_dataset(path)

    return make


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """One feature cache per test file."""
    return FeatureCache(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="session")
def points(make_dataset: Callable[..., Dataset]) -> Dataset:
    """Thirty episodes of twelve steps."""
    return make_dataset()
