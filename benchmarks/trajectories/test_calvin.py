"""Reading CALVIN's step files: frames per second beside ``numpy.load`` file by file, which is the floor.

Both read the same arrays of the same files, whose bytes are in the page cache. ``extra_info`` holds frames per second;
``docs/calvin-data.md`` shows them. Run with ``pytest benchmarks/trajectories/test_calvin.py --benchmark-only``.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from latentgym.trajectories import open_dataset

# What pretraining and encoding ask for, what a probe asks for, and everything.
REQUESTS = {
    "static camera": ("rgb_static",),
    "both cameras": ("rgb_static", "rgb_gripper"),
    "both cameras and depth": ("rgb_static", "rgb_gripper", "depth_static", "depth_gripper"),
    "no frames": (),
}
LOW = ("rel_actions", "robot_obs", "scene_obs")


@pytest.fixture(scope="module")
def folder() -> Path:
    shared = Path(os.environ.get("LATENTGYM_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    path = shared / "calvin_debug" / "training"
    if not path.is_dir():
        pytest.skip("shared test data not found; set LATENTGYM_SHARED to its folder")
    return path


def load_each(folder: Path, names: tuple[str, ...]) -> int:
    steps = 0
    for first, last in np.load(folder / "ep_start_end_ids.npy"):
        parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for step in range(first, last + 1):
            with np.load(folder / f"episode_{step:07d}.npz") as arrays:
                for name in names:
                    parts[name].append(arrays[name])
        steps += len({name: np.stack(part) for name, part in parts.items()}[names[0]])
    return steps


def read_ours(folder: Path, names: tuple[str, ...], workers: int) -> int:
    dataset = open_dataset(folder, workers=workers)
    return sum(len(arrays[names[0]]) for _, _, arrays in dataset.chunks(names))


@pytest.mark.parametrize("reader", ["numpy.load", "ours, 1 thread", "ours, 1 thread per core"])
@pytest.mark.parametrize("request_name", REQUESTS)
def test_reader(benchmark, folder, request_name, reader):
    names = (*LOW, *REQUESTS[request_name])
    cores = len(os.sched_getaffinity(0))
    benchmark.group = request_name

    def read() -> int:
        if reader == "numpy.load":
            return load_each(folder, names)
        return read_ours(folder, names, 1 if reader == "ours, 1 thread" else cores)

    steps = benchmark.pedantic(read, rounds=5, iterations=1, warmup_rounds=1)
    assert steps == 528
    benchmark.extra_info["cores"] = cores
    if benchmark.stats is not None:
        benchmark.extra_info["steps_per_s"] = round(steps / benchmark.stats.stats.median)
