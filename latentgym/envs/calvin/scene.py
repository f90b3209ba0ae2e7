"""What differs from scene to scene, read from the benchmark's own YAML files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.errors import CorruptDataError, UnknownNameError, require

SCENES = ("A", "B", "C", "D")
SLIDER, DRAWER, BUTTON, SWITCH, LIGHTBULB, LED = range(6)
"""Places of the joints and lights in ``scene_obs``; three poses of six numbers follow."""
BLOCKS = ("red", "blue", "pink")


@dataclasses.dataclass(frozen=True)
class SceneSpec:
    """One of the four scenes.

    Attributes:
        name: ``"A"``, ``"B"``, ``"C"`` or ``"D"``.
        robot_base: position of the robot's base, in metres.
        rest_joints: the arm's seven joint angles at rest, in rad.
        surfaces: name to lowest and highest corner ``(2, 3)``, in metres, of the region where a block's origin may be
            placed at random.
        table_file: URDF of the table, relative to the asset folder's ``data``.
        lights: colour (RGBA) of each light when it is on.
        blocks: name to URDF, in the order in which blocks are loaded and stand in ``scene_obs``.
    """

    name: str
    robot_base: tuple[float, float, float]
    rest_joints: tuple[float, ...]
    surfaces: Mapping[str, NDArray[np.float64]]
    table_file: str
    lights: Mapping[str, tuple[float, ...]]
    blocks: Mapping[str, str]

    def block_slice(self, colour: str) -> slice:
        """Where the pose of the block of this colour stands in this scene's ``scene_obs``."""
        start = 6 + 6 * list(self.blocks).index(f"block_{colour}")
        return slice(start, start + 6)


def load_scene(name: str, assets: Path) -> SceneSpec:
    """Read ``conf/scene/calvin_scene_<name>.yaml``.

    Args:
        name: letter of the scene.
        assets: folder of CALVIN's assets.

    Raises:
        UnknownNameError: if there is no such scene.
        CorruptDataError: if the file does not describe a scene.
        MissingExtraError: if PyYAML is not installed.
    """
    if name not in SCENES:
        raise UnknownNameError("CALVIN scene", str(name), SCENES)
    path = assets / "conf" / "scene" / f"calvin_scene_{name}.yaml"
    yaml = require("yaml", "calvin")
    try:
        return _parse(name, yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptDataError(
            f"{path} does not describe a CALVIN scene ({type(error).__name__}: {error}); fetch the assets again with: "
            "latentgym assets calvin"
        ) from error


def _parse(name: str, data: Mapping[str, Any]) -> SceneSpec:
    table = data["objects"]["fixed_objects"]["table"]
    base = tuple(map(float, data["robot_base_position"]))
    return SceneSpec(
        name=name,
        robot_base=(base[0], base[1], base[2]),
        rest_joints=tuple(map(float, data["robot_initial_joint_positions"])),
        surfaces={key: np.array(corners, np.float64) for key, corners in data["surfaces"].items()},
        table_file=table["file"],
        lights={light: tuple(item["color"]) for light, item in table["lights"].items()},
        blocks={block: item["file"] for block, item in data["objects"]["movable_objects"].items()},
    )
