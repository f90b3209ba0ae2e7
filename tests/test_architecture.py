"""The house's rules: imports run downwards only, and importing the package is light."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import latentgym

PACKAGE = Path(latentgym.__file__).parent
# From the ground up; a module may import from its own floor and from those before it.
FLOORS = (
    (
        "errors",
        "seeding",
        "artifacts",
        "results",
        "progress",
        "statistics",
        "corruptions",
        "devices",
        "workers",
        "registration",
    ),
    ("trajectories",),
    ("encoders",),
    ("envs",),
    ("probes",),
    ("policies",),
    ("rollouts",),
    ("studies",),
    ("cli", "__main__"),
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
# Installed by extras, or slow to import: only inside functions.
OPTIONAL = {
    "metaworld",
    "robosuite",
    "pybullet",
    "yaml",
    "calvin_env",
    "hydra",
    "transformers",
    "timm",
    "torchvision",
    "diffusers",
    "plotly",
    "ray",
    "sklearn",
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(dotted: str) -> str:
    """``"envs"`` for ``"latentgym.envs.make"``; empty for the package itself."""
    return ".".join(dotted.split(".")[1:2])


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_has_a_floor() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES}
    assert rooms <= set(LEVEL), f"give these a place in FLOORS: {sorted(rooms - set(LEVEL))}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    tree = ast.parse(path.read_text())
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative, f"{path}: use absolute imports"
    ours = [name for name in imported(tree) if name.split(".")[0] == "latentgym" and room_of(name) in LEVEL]
    upwards = [name for name in ours if LEVEL[room_of(name)] > LEVEL[room]]
    assert not upwards, f"{room} may not import {upwards}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_optional_packages_are_imported_inside_functions(path: Path) -> None:
    tree = ast.parse(path.read_text())
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(function, ast.If) and "TYPE_CHECKING" in ast.unparse(function.test))
        for node in ast.walk(function)
    }
    outer = [
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in inner
        for name in imported(node)
        if name.split(".")[0] in OPTIONAL
    ]
    assert not outer, f"import {outer} where they are used, through latentgym.errors.require"


def test_importing_the_package_is_light() -> None:
    code = "import sys, latentgym; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {*OPTIONAL, "torch", "scipy", "mujoco", "pyarrow", "av", "pydantic"}


def test_importing_the_package_registers_its_environments() -> None:
    code = "import gymnasium, latentgym; print(gymnasium.make('latentgym/TabletopReach-v0').reset(seed=0)[1])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "is_success" in found


@pytest.mark.parametrize("name", latentgym.__all__)
def test_public_names_are_there_and_documented(name: str) -> None:
    assert name in dir(latentgym)
    value = getattr(latentgym, name)
    if name != "__version__":
        assert callable(value)
        assert ">>>" in value.__doc__, "each has an example, which runs as a test"
        assert value is getattr(importlib.import_module(value.__module__), name)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        latentgym.no_such_name  # noqa: B018
