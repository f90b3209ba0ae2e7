"""Small synthetic folders in CALVIN's format, deterministic in their seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def write_step(path: Path, seed: int, **changes: Any) -> None:
    rng = np.random.default_rng(seed)
    rel = rng.uniform(-1, 1, 7)
    rel[0] = 1.0 if seed % 2 else 0.5
    arrays = {
        "actions": rng.standard_normal(7),
        "rel_actions": rel,
        "robot_obs": rng.standard_normal(15),
        "scene_obs": rng.standard_normal(24),
        "rgb_static": rng.integers(0, 256, (8, 8, 3), dtype=np.uint8),
        "rgb_gripper": rng.integers(0, 256, (4, 4, 3), dtype=np.uint8),
        "rgb_tactile": rng.integers(0, 256, (4, 3, 6), dtype=np.uint8),
        "depth_static": rng.standard_normal((8, 8)).astype(np.float32),
        "depth_tactile": rng.standard_normal((4, 3, 2)).astype(np.float32),
    }
    np.savez_compressed(path, **{name: array for name, array in {**arrays, **changes}.items() if array is not None})


@pytest.fixture
def make_calvin(tmp_path: Path) -> Callable[..., Path]:
    def make(
        name: str = "training",
        ranges: tuple[tuple[int, int], ...] = ((0, 20), (21, 33), (40, 47)),
        scenes: dict[str, list[int]] | None = None,
        spans: tuple[tuple[int, int], ...] = ((2, 9), (22, 30)),
    ) -> Path:
        folder = tmp_path / name
        (folder / "lang_annotations").mkdir(parents=True)
        for first, last in ranges:
            for step in range(first, last + 1):
                write_step(folder / f"episode_{step:07d}.npz", step)
        np.save(folder / "ep_start_end_ids.npy", np.array(ranges))
        scenes = {"calvin_scene_B": [0, 33], "calvin_scene_D": [34, 99]} if scenes is None else scenes
        np.save(folder / "scene_info.npy", np.array(scenes, dtype=object), allow_pickle=True)
        content = {
            "language": {
                "ann": [f"sentence {row}" for row in range(len(spans))],
                "task": [f"task_{row}" for row in range(len(spans))],
                "emb": np.arange(6 * len(spans), dtype=np.float32).reshape(len(spans), 1, 6),
            },
            "info": {"episodes": [], "indx": list(spans)},
        }
        annotations = folder / "lang_annotations" / "auto_lang_ann.npy"
        np.save(annotations, np.array(content, dtype=object), allow_pickle=True)
        (folder / "statistics.yaml").write_text("robot_obs: []\n")
        return folder

    return make
