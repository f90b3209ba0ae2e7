"""The GL backend is chosen for the user, and its absence is one clear message."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from latentgym.envs.gl import gl_strings

MAKE = "from latentgym.envs.make import make_env; print(make_env('latentgym/TabletopReach-v0').reset(seed=0)[0].keys())"
CATCH = """
from latentgym.errors import LatentGymError
try:
    {code}
except LatentGymError as error:
    print("LatentGymError:", error)
"""
NO_LIBRARY = """
import ctypes
real = ctypes.CDLL
def refuse(name, *args, **kwargs):
    if name and ("EGL" in str(name) or "OSMesa" in str(name)):
        raise OSError(f"{name}: cannot open shared object file")
    return real(name, *args, **kwargs)
ctypes.CDLL = refuse
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter without GL variables but those given."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True, check=False
    )


def test_chosen_when_unset() -> None:
    result = run(f"{MAKE}; import os; print(os.environ['MUJOCO_GL'])")
    assert result.returncode == 0, result.stderr
    assert "pixels" in result.stdout
    assert result.stdout.split()[-1] in ("egl", "osmesa")


def test_chosen_even_after_mujoco_was_imported() -> None:
    result = run(f"import mujoco; {MAKE}")
    assert result.returncode == 0, result.stderr


def test_an_unclosed_environment_leaves_no_noise() -> None:
    assert (
        run(
            f"{MAKE}; from latentgym.envs.make import make_env; e = make_env('latentgym/TabletopReach-v0'); "
            "e.reset(seed=0)"
        ).stderr
        == ""
    )


@pytest.mark.parametrize(("value", "expected"), [("nonsense", "expected one of egl"), ("disable", "unset it")])
def test_unusable_values_are_named(value: str, expected: str) -> None:
    result = run(CATCH.format(code=MAKE), MUJOCO_GL=value)
    assert "LatentGymError" in result.stdout, result.stderr
    assert value in result.stdout
    assert expected in result.stdout


def test_missing_libraries_name_the_packages() -> None:
    for environment in ({}, {"MUJOCO_GL": "egl"}, {"MUJOCO_GL": "osmesa"}):
        result = run(NO_LIBRARY + CATCH.format(code=MAKE), **environment)
        assert "LatentGymError" in result.stdout, result.stderr
        assert "libegl1 libegl-mesa0 libgl1-mesa-dri" in result.stdout
        assert "libosmesa6" in result.stdout


def test_an_egl_without_a_device_names_the_packages() -> None:
    result = run(CATCH.format(code=MAKE), MUJOCO_GL="egl", MUJOCO_EGL_DEVICE_ID="77")
    assert "LatentGymError" in result.stdout, result.stderr
    assert "libegl1" in result.stdout
    assert "Exception ignored" not in result.stderr


def test_without_frames_no_library_is_needed() -> None:
    result = run(NO_LIBRARY + MAKE.replace("v0'", "v0', pixels=False"))
    assert result.returncode == 0, result.stderr
    assert "proprio" in result.stdout


def test_strings_for_provenance() -> None:
    assert set(gl_strings()) == {"backend", "vendor", "renderer", "version"}
    assert all(gl_strings().values())
