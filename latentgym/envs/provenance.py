"""Where recorded data come from: versions, GL strings, seed, command, git revision."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import latentgym
from latentgym.envs.calvin.rendering import renderer_strings
from latentgym.envs.contract import EnvContract
from latentgym.envs.gl import gl_strings
from latentgym.errors import LatentGymError
from latentgym.trajectories.episode import Provenance

_PACKAGES = ("numpy", "gymnasium", "mujoco")
_SIMULATORS = {"metaworld": "metaworld", "robosuite": "robosuite", "calvin": "pybullet"}
_GIT_TIMEOUT_S = 10


def make_provenance(contract: EnvContract, *, seed: int, call: str, settings: dict[str, Any]) -> Provenance:
    """The provenance of data about to be recorded in this process.

    Creates a GL context if the environment has cameras: with worker processes, call it in a worker.

    Args:
        contract: the environment's.
        seed: root seed of the recording.
        call: the call as text; the command line stands in its place where the program is ``latentgym`` itself.
        settings: whatever else determines the data, of JSON types.
    """
    gl: dict[str, str] = {}
    if contract.cameras and contract.suite == "calvin":
        gl = renderer_strings(contract.settings["renderer"])
    elif contract.cameras:
        with contextlib.suppress(LatentGymError):  # frames need not come from GL
            gl = gl_strings()
    program = Path(sys.argv[0] if sys.argv else "")
    from_command_line = "latentgym" in (program.name, program.parent.name if program.name == "__main__.py" else "")
    command = shlex.join(["latentgym", *sys.argv[1:]]) if from_command_line else call
    return Provenance(_versions(contract.suite), gl, seed, command, _revision(), settings)


def _versions(suite: str) -> dict[str, str]:
    versions = {"python": platform.python_version(), "latentgym": latentgym.__version__}
    for package in (*_PACKAGES, *([_SIMULATORS[suite]] if suite in _SIMULATORS else [])):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _revision() -> str:
    """Git revision of the current folder, with ``-dirty`` if it has changes; empty outside a repository."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
