"""What every test relies on: one thread, a GL backend chosen before MuJoCo loads, and the shared data folder."""

from __future__ import annotations

import os
from pathlib import Path

# Before any import of MuJoCo or torch: both read these once. EGL is preferred because its images are bitwise equal
# across contexts.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of shared test data: where LATENTGYM_SHARED points, else ``../shared`` beside the project.

    Tests that need it are skipped where it is absent, but never in CI.
    """
    path = Path(os.environ.get("LATENTGYM_SHARED", ROOT.parent / "shared"))
    if path.is_dir():
        return path
    reason = f"shared test data not found at {path}; set LATENTGYM_SHARED to its folder"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(reason)
    pytest.skip(reason)
