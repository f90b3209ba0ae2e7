"""What the task oracle looks at: one moment of a scene, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

Vector = tuple[float, ...]


class Contact(NamedTuple):
    """What a body touches: a link of a body, by PyBullet's numbers; link -1 is the base."""

    body: int
    link: int


@dataclasses.dataclass(frozen=True)
class BlockState:
    """One block.

    Attributes:
        uid: number of its body.
        position: ``(3,)`` in metres.
        orientation: quaternion ``(4,)``, x, y, z, w.
        linear_velocity: ``(3,)`` in m/s.
        angular_velocity: ``(3,)`` in rad/s.
        contacts: what it touches.
    """

    uid: int
    position: Vector
    orientation: Vector
    linear_velocity: Vector
    angular_velocity: Vector
    contacts: frozenset[Contact]

    @property
    def touched(self) -> set[int]:
        """Numbers of the bodies that it touches."""
        return {contact.body for contact in self.contacts}


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """One moment of a scene.

    Attributes:
        robot: number of the robot's body.
        table: number of the table's body.
        table_links: link name to number.
        robot_touches: numbers of the bodies that the robot touches.
        blocks: name to block.
        doors: name of the joint to position, in metres.
        lights: name to whether it is on.
    """

    robot: int
    table: int
    table_links: Mapping[str, int]
    robot_touches: frozenset[int]
    blocks: Mapping[str, BlockState]
    doors: Mapping[str, float]
    lights: Mapping[str, bool]
