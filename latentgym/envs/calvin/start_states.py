"""Random scenes in which a given task can be done, in the manner of the official evaluation but in any scene."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.envs.calvin.chains import (
    DRAWER_OPEN_M,
    SLIDER_LEFT_M,
    SWITCH_ON_RAD,
    YAW_RANGE,
    InitialCondition,
    initial_conditions,
    next_states,
)
from latentgym.envs.calvin.scene import BLOCKS, DRAWER, LED, LIGHTBULB, SLIDER, SWITCH, SceneSpec
from latentgym.errors import LatentGymError

_CLEARANCE_M = 0.13
_ATTEMPTS = 1000
_BLOCK_HEIGHT_M = 0.04
_DRAWER_FLOOR = ((0.05, -0.30, 0.36), (0.25, -0.26, 0.36))


@dataclasses.dataclass(frozen=True)
class StartState:
    """How an episode begins.

    Attributes:
        scene_obs: ``(24,)``, blocks in the scene's own order.
        grasp: colour of the block that must first be lifted, or ``None``.
    """

    scene_obs: NDArray[np.float64]
    grasp: str | None = None


def draw_start(rng: np.random.Generator, scene: SceneSpec, task: str) -> StartState:
    """A random scene in which ``task`` can be done.

    Lights, doors and the blocks' places are drawn among the official evaluation's initial conditions; blocks on the
    table keep 13 cm between them. Where the task begins with a block in the drawer, on another block, or in the hand,
    one of those on the table is put there.

    Args:
        rng: source of randomness.
        scene: the scene.
        task: name of the task.

    Raises:
        LatentGymError: if the blocks find no place.
    """
    condition, moved, to = _draw_condition(rng, task)
    if moved is not None and to == "drawer":
        condition = {**condition, f"{moved}_block": "drawer"}
    obs = np.zeros(24)
    obs[SLIDER] = SLIDER_LEFT_M if condition["slider"] == "left" else 0.0
    obs[DRAWER] = DRAWER_OPEN_M if condition["drawer"] == "open" else 0.0
    obs[SWITCH] = SWITCH_ON_RAD if condition["lightbulb"] == 1 else 0.0
    obs[LIGHTBULB], obs[LED] = condition["lightbulb"], condition["led"]
    positions = _draw_positions(rng, scene, [condition[f"{colour}_block"] for colour in BLOCKS])
    if moved is not None and to == "stacked":
        under = next(c for c in BLOCKS if c != moved and condition[f"{c}_block"] == "table")
        positions[BLOCKS.index(moved)] = positions[BLOCKS.index(under)] + (0, 0, _BLOCK_HEIGHT_M)
    for colour, position in zip(BLOCKS, positions, strict=True):
        obs[scene.block_slice(colour)] = (*position, 0, 0, rng.uniform(*YAW_RANGE))
    return StartState(obs, moved if to == "grasped" else None)


def _draw_condition(rng: np.random.Generator, task: str) -> tuple[InitialCondition, str | None, str]:
    """An initial condition, and which of its blocks goes where that is not among them."""
    ready: list[tuple[InitialCondition, str | None, str]] = [
        (condition, None, "") for condition in initial_conditions() if next_states(condition, task)
    ]
    if not ready:
        ready = [
            (condition, colour, to)
            for condition in initial_conditions()
            for colour in BLOCKS
            if condition[f"{colour}_block"] == "table"
            for to, state in _prepared(condition, colour)
            if next_states(state, task)
        ]
    return ready[int(rng.integers(len(ready)))]


def _prepared(condition: InitialCondition, colour: str) -> list[tuple[str, dict[str, Any]]]:
    """States that differ from an initial condition by where one block of the table is."""
    block = f"{colour}_block"
    others = [f"{other}_block" for other in BLOCKS if other != colour and condition[f"{other}_block"] == "table"]
    return [
        ("drawer", {**condition, block: "drawer"}),
        ("grasped", {**condition, block: "grasped", "grasped": 1}),
        *(("stacked", {**condition, block: "stacked_top", other: "stacked_bottom"}) for other in others),
    ]


def _draw_positions(rng: np.random.Generator, scene: SceneSpec, places: list[str]) -> list[NDArray[np.float64]]:
    for _ in range(_ATTEMPTS):
        positions = [_draw_position(rng, scene, place) for place in places]
        table = [position[:2] for position, place in zip(positions, places, strict=True) if place == "table"]
        if all(np.hypot(*(a - b)) >= _CLEARANCE_M for i, a in enumerate(table) for b in table[:i]):
            return positions
    raise LatentGymError(f"scene {scene.name}: no place for the blocks found in {_ATTEMPTS} attempts")


def _draw_position(rng: np.random.Generator, scene: SceneSpec, place: str) -> NDArray[np.float64]:
    low, high = _DRAWER_FLOOR if place == "drawer" else scene.surfaces[place]
    if place in ("table", "drawer"):
        return rng.uniform(low, high)
    # In a cabinet the official evaluation puts blocks in the middle.
    middle: NDArray[np.float64] = (np.asarray(low) + np.asarray(high)) / 2
    return middle
