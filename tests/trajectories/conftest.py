"""Small synthetic episodes and stores, deterministic in their seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentgym.trajectories import ActionSpec, Episode, Provenance, Store, create_store

ACTION_SPEC = ActionSpec(
    names=("x", "y"),
    frame="world",
    mode="velocity",
    units=("m/s", "m/s"),
    scale=(0.3, 0.3),
    low=(-1.0, -1.0),
    high=(1.0, 1.0),
    translation=(0, 1),
)


def provenance(**changes: Any) -> Provenance:
    fields = {
        "versions": {"mujoco": "3.3.0"},
        "gl": {"renderer": "llvmpipe"},
        "seed": 0,
        "command": "latentgym record X",
    }
    return Provenance(**{**fields, "revision": "", "settings": {}, **changes})


@pytest.fixture
def make_episode() -> Callable[..., Episode]:
    def make(seed: int = 0, steps: int = 6, size: int = 16, policy: str = "expert", **changes: Any) -> Episode:
        rng = np.random.default_rng(seed)
        fields: dict[str, Any] = {
            "frames": {
                camera: rng.integers(0, 256, (steps + 1, size, size, 3), dtype=np.uint8)
                for camera in ("pixels", "pixels_wrist")
            },
            "action": rng.standard_normal((steps, 2)).astype(np.float32),
            "proprio": rng.standard_normal((steps + 1, 3)).astype(np.float32),
            "state": rng.standard_normal((steps + 1, 5)).astype(np.float32),
            "sim_state": rng.standard_normal((steps + 1, 7)),
            "reward": rng.standard_normal(steps).astype(np.float32),
            "terminated": np.zeros(steps, np.bool_),
            "truncated": np.arange(steps) == steps - 1,
            "success": np.arange(steps) >= steps - 1 - seed % 2,
            "random_action": rng.random(steps) < 0.5,
            "seed": seed,
            "policy": policy,
            "env_id": "test/Env-v0",
            "instruction": "put the puck on the pad",
            "expert_action": rng.standard_normal((steps, 2)).astype(np.float32),
            "info": {"task": "reach", "goal": [0.1, 0.2]},
        }
        return Episode(**{**fields, **changes})

    return make


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Store]:
    def make(path: Path | None = None, **changes: Any) -> Store:
        fields: dict[str, Any] = {
            "env_id": "test/Env-v0",
            "action_spec": ACTION_SPEC,
            "cameras": ("pixels", "pixels_wrist"),
            "control_hz": 12.5,
            "horizon": 50,
            "episodes": 4,
            "provenance": provenance(),
            "settings": {"image_size": 16, "render": "fast"},
        }
        return create_store(path or tmp_path / "data", **{**fields, **changes})

    return make


@pytest.fixture
def recorded(make_store: Callable[..., Store], make_episode: Callable[..., Episode]) -> Path:
    """Folder of a complete data set of four episodes."""
    store = make_store()
    for index in range(4):
        store.write(index, make_episode(seed=index, steps=5 + index))
    return store.path


@pytest.fixture
def make_provenance() -> Callable[..., Provenance]:
    return provenance
