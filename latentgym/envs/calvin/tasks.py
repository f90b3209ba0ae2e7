"""CALVIN's task oracle: 34 predicates over the moment when an instruction was given and the moment now.

Definitions and thresholds are those of calvin_env's ``new_playtable_tasks`` (revision 797142c), its quirks included:
a push counts only while the block keeps touching everything that it touched at the start, a lift only while it touches
nothing but the robot.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from latentgym.envs.calvin.scene import BLOCKS
from latentgym.envs.calvin.snapshot import BlockState, Contact, Snapshot
from latentgym.errors import UnknownNameError

Predicate = Callable[[Snapshot, Snapshot], bool]

_TILT_LIMIT_DEG = 30
_HALF_TURN_DEG = 180
_DRIFT_LIMIT_M = 0.1
_STILL = 1.0
"""Speed (m/s or rad/s, per axis) below which a stacked block counts as at rest."""


def _moved(block: str, start: Snapshot, now: Snapshot) -> NDArray[np.float64]:
    return np.subtract(now.blocks[block].position, start.blocks[block].position, dtype=np.float64)


def rotated(block: str, degrees: float, start: Snapshot, now: Snapshot) -> bool:
    """Turned about the vertical by more than ``degrees`` (negative: clockwise), hardly tilted or moved, put down."""
    before, after = (Rotation.from_quat(moment.blocks[block].orientation) for moment in (start, now))
    x, y, z = (after * before.inv()).as_euler("xyz", degrees=True)
    if np.linalg.norm(_moved(block, start, now)) > _DRIFT_LIMIT_M:
        return False
    if not now.blocks[block].touched - {start.robot}:
        return False
    turned = degrees < z < _HALF_TURN_DEG if degrees > 0 else degrees > z > -_HALF_TURN_DEG
    return bool(turned and abs(x) < _TILT_LIMIT_DEG and abs(y) < _TILT_LIMIT_DEG)


def pushed(block: str, metres: float, start: Snapshot, now: Snapshot) -> bool:
    """Moved along x by more than ``metres`` (negative: to the left) while staying on what it stood on."""
    before, after = (
        {contact for contact in moment.blocks[block].contacts if contact.body != start.robot} for moment in (start, now)
    )
    if not before or not after or not before <= after:
        return False
    distance = _moved(block, start, now)[0]
    return bool(distance > metres if metres > 0 else distance < metres)


def lifted(block: str, metres: float, link: str, start: Snapshot, now: Snapshot) -> bool:
    """Raised by more than ``metres`` off a link of the table that it touched, and touching the robot alone."""
    touched = now.blocks[block].touched
    return bool(
        _moved(block, start, now)[2] > metres
        and touched == {start.robot}
        and Contact(start.table, start.table_links[link]) in start.blocks[block].contacts
    )


def placed(link: str, start: Snapshot, now: Snapshot) -> bool:
    """The block that was held at the start, and touched nothing else, lies on a link of the table and is let go."""
    if len(start.robot_touches) != 1:
        return False
    (held,) = start.robot_touches
    if held in now.robot_touches:
        return False
    for name, block in start.blocks.items():
        if block.uid == held:
            on_link = Contact(now.table, now.table_links[link]) in now.blocks[name].contacts
            return block.touched == {start.robot} and on_link
    return False


def pushed_into(blocks: Collection[str], source: str, target: str, start: Snapshot, now: Snapshot) -> bool:
    """A block went from one link of the table to another, touched by the robot neither at the start nor now."""
    return any(
        start.blocks[name].contacts == {Contact(start.table, start.table_links[source])}
        and Contact(now.table, now.table_links[target]) in now.blocks[name].contacts
        and start.robot not in now.blocks[name].touched
        for name in blocks
    )


def door_moved(joint: str, metres: float, start: Snapshot, now: Snapshot) -> bool:
    """A door moved by more than ``metres``, in their direction."""
    distance = now.doors[joint] - start.doors[joint]
    return bool(0 < metres < distance or 0 > metres > distance)


def light_switched(light: str, on: bool, start: Snapshot, now: Snapshot) -> bool:
    """A light went on, or off."""
    return start.lights[light] != on and now.lights[light] == on


def _stands_on_block(block: BlockState, blocks: set[int]) -> bool:
    """Whether it touches other blocks and nothing else."""
    return bool(block.touched & blocks) and not block.touched - blocks


def _still(block: BlockState) -> bool:
    return all(abs(speed) < _STILL for speed in (*block.linear_velocity, *block.angular_velocity))


def _any_stacked(before: Snapshot, after: Snapshot) -> bool:
    blocks = {block.uid for block in before.blocks.values()}
    return any(
        not block.touched & blocks and _stands_on_block(after.blocks[name], blocks) and _still(after.blocks[name])
        for name, block in before.blocks.items()
    )


def stacked(start: Snapshot, now: Snapshot) -> bool:
    """A block that touched no other stands on others alone, at rest."""
    return _any_stacked(start, now)


def unstacked(start: Snapshot, now: Snapshot) -> bool:
    """A block that stood on others alone, at rest, touches no other."""
    return _any_stacked(now, start)


def _block_tasks(colour: str) -> dict[str, Predicate]:
    block = f"block_{colour}"
    lifts = {"table": (0.05, "base_link"), "slider": (0.03, "plank_link"), "drawer": (0.05, "drawer_link")}
    moves: dict[str, Predicate] = {
        f"rotate_{colour}_block_right": functools.partial(rotated, block, -60),
        f"rotate_{colour}_block_left": functools.partial(rotated, block, 60),
        f"push_{colour}_block_right": functools.partial(pushed, block, 0.1),
        f"push_{colour}_block_left": functools.partial(pushed, block, -0.1),
    }
    return moves | {
        f"lift_{colour}_block_{place}": functools.partial(lifted, block, *how) for place, how in lifts.items()
    }


TASKS: Mapping[str, Predicate] = {name: test for colour in BLOCKS for name, test in _block_tasks(colour).items()} | {
    "move_slider_left": functools.partial(door_moved, "base__slide", 0.15),
    "move_slider_right": functools.partial(door_moved, "base__slide", -0.15),
    "open_drawer": functools.partial(door_moved, "base__drawer", 0.12),
    "close_drawer": functools.partial(door_moved, "base__drawer", -0.12),
    "place_in_slider": functools.partial(placed, "plank_link"),
    "place_in_drawer": functools.partial(placed, "drawer_link"),
    "stack_block": stacked,
    "unstack_block": unstacked,
    "turn_on_lightbulb": functools.partial(light_switched, "lightbulb", True),
    "turn_off_lightbulb": functools.partial(light_switched, "lightbulb", False),
    "turn_on_led": functools.partial(light_switched, "led", True),
    "turn_off_led": functools.partial(light_switched, "led", False),
    "push_into_drawer": functools.partial(
        pushed_into, tuple(f"block_{colour}" for colour in BLOCKS), "base_link", "drawer_link"
    ),
}
"""Name of each task to its predicate, called with the snapshot at the start and the snapshot now."""


def solved_tasks(start: Snapshot, now: Snapshot, tasks: Collection[str] | None = None) -> set[str]:
    """Which tasks were achieved between two moments of one episode.

    Args:
        start: when the instruction was given.
        now: the moment to judge.
        tasks: names to check; all 34 by default.

    Raises:
        UnknownNameError: if a name is not a task.
    """
    names = TASKS if tasks is None else tasks
    return {name for name in names if predicate(name)(start, now)}


def predicate(task: str) -> Predicate:
    """The predicate of one task.

    Raises:
        UnknownNameError: if there is no such task.
    """
    if not isinstance(task, str) or task not in TASKS:
        raise UnknownNameError("CALVIN task", str(task), TASKS)
    return TASKS[task]
