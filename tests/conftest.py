"""What every test relies on: one thread, a GL backend chosen before MuJoCo loads, and the shared data folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
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


@pytest.fixture
def on_full_disk(tmp_path: Path) -> Callable[[str], str]:
    """``on_full_disk(program)`` runs Python with a disk of 256 KiB at ``sys.argv[1]`` and returns what it prints.

    Skipped where there are no private mounts.
    """
    mount = 'mount -t tmpfs -o size=256k tmpfs "$1" && exec "$2" -c "$3" "$1"'

    def run(program: str) -> str:
        arguments = [mount, "sh", str(tmp_path), sys.executable, program]
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except FileNotFoundError:
            pytest.skip("needs unshare(1) of util-linux")
        if "unshare:" in done.stderr or "mount:" in done.stderr:
            pytest.skip(f"needs a private mount: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
