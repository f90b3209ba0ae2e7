"""What stands on the table: sliding door, drawer, button, switch, two lights and three blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.envs.calvin.client import Client
from latentgym.envs.calvin.snapshot import BlockState, Contact
from latentgym.errors import LatentGymError

_MAX_FORCE = 4
_SWITCHED_OFF = (1, 1, 1, 1)


class Joint:
    """A movable part of the table: a door that stays where it is left, braked by friction.

    Args:
        client: the physics client.
        body: number of the table.
        name: name of the joint in the table's URDF.
    """

    def __init__(self, client: Client, body: int, name: str) -> None:
        self._client, self._body = client, body
        infos = [client.getJointInfo(body, index) for index in range(client.getNumJoints(body))]
        self._index = next(index for index, info in enumerate(infos) if info[1].decode() == name)
        self._middle = float(sum(infos[self._index][8:10])) / 2
        self._brake()

    def _brake(self) -> None:
        self._client.setJointMotorControl2(
            self._body, self._index, controlMode=self._client.pybullet.VELOCITY_CONTROL, force=_MAX_FORCE
        )

    def reset(self, position: float) -> None:
        """Put the joint at ``position`` (m or rad)."""
        self._client.resetJointState(self._body, self._index, position)

    @property
    def position(self) -> float:
        """Position of the joint (m or rad); 0 is where it starts."""
        return float(self._client.getJointState(self._body, self._index)[0])

    @property
    def pressed(self) -> bool:
        """Whether it is past the middle of its range, seen from where it starts."""
        position = self.position
        return position > self._middle if self._middle >= 0 else position < self._middle


class Light:
    """A lamp that is a colour of one link.

    Args:
        client: the physics client.
        body: number of the table.
        link: name of the link in the table's URDF.
        colour: RGBA when on; white when off.
    """

    def __init__(self, client: Client, body: int, link: str, colour: tuple[float, ...]) -> None:
        self._client, self._body, self._colour = client, body, colour
        names = [client.getJointInfo(body, index)[12].decode() for index in range(client.getNumJoints(body))]
        self._link = names.index(link)
        self.on = False

    def switch(self, on: bool) -> None:
        """Turn it on or off."""
        self.on = on
        self._client.changeVisualShape(self._body, self._link, rgbaColor=list(self._colour if on else _SWITCHED_OFF))

    def reset(self, state: float) -> None:
        """Turn it on (1) or off (0).

        Raises:
            LatentGymError: for any other value.
        """
        if state not in (0, 1):
            raise LatentGymError(f"scene_obs: a light is 0 (off) or 1 (on), found {state}")
        self.switch(bool(state))


class Button(Joint):
    """A spring button that toggles its light each time it goes down."""

    def __init__(self, client: Client, body: int, name: str, light: Light) -> None:
        super().__init__(client, body, name)
        self._light = light
        self._was_pressed = self.pressed

    def _brake(self) -> None:
        self._client.setJointMotorControl2(
            self._body,
            self._index,
            controlMode=self._client.pybullet.POSITION_CONTROL,
            targetPosition=0,
            force=_MAX_FORCE,
        )

    def step(self) -> None:
        """Toggle the light at the moment of being pressed."""
        pressed = self.pressed
        if pressed and not self._was_pressed:
            self._light.switch(not self._light.on)
        self._was_pressed = pressed


class Switch(Joint):
    """A lever whose light follows its position; a light that was set otherwise stays until the lever crosses over."""

    def __init__(self, client: Client, body: int, name: str, light: Light) -> None:
        super().__init__(client, body, name)
        self._light = light
        self._was_pressed = False

    def reset(self, position: float) -> None:
        """Put the lever at ``position`` in rad."""
        super().reset(position)
        self._was_pressed = False

    def step(self) -> None:
        """Turn the light on or off at the moment of crossing the middle."""
        pressed = self.pressed
        if pressed != self._was_pressed:
            self._light.switch(pressed)
        self._was_pressed = pressed


class Block:
    """One of the three blocks.

    Args:
        client: the physics client.
        body: number of the block.
    """

    def __init__(self, client: Client, body: int) -> None:
        self._client, self.uid = client, body

    def reset(self, position: NDArray[np.float64], orientation: NDArray[np.float64]) -> None:
        """Put it at a position ``(3,)`` in metres with an orientation ``(4,)``, a quaternion x, y, z, w."""
        self._client.resetBasePositionAndOrientation(self.uid, position, orientation)

    def pose(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Position in metres and quaternion x, y, z, w."""
        pose: tuple[tuple[float, ...], tuple[float, ...]] = self._client.getBasePositionAndOrientation(self.uid)
        return pose

    def observation(self) -> NDArray[np.float64]:
        """Position in metres and Euler angles in rad, ``(6,)``."""
        position, orientation = self.pose()
        return np.array([*position, *self._client.pybullet.getEulerFromQuaternion(orientation)])

    def state(self) -> BlockState:
        """Pose, velocity and contacts."""
        linear, angular = self._client.getBaseVelocity(self.uid)
        return BlockState(self.uid, *self.pose(), linear, angular, touches(self._client, self.uid))


def touches(client: Client, body: int) -> frozenset[Contact]:
    """What ``body`` touched in the last simulator step."""
    return contacts_of(client.getContactPoints(bodyA=body))


def contacts_of(points: Iterable[Sequence[Any]]) -> frozenset[Contact]:
    """The other side of each of PyBullet's contact points."""
    return frozenset(Contact(point[2], point[4]) for point in points)
