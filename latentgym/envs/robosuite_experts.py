"""Scripted experts for robosuite's tasks: functions of the current ``"state"``, so that they can be cloned.

Each turns the state into a gripper pose to head for and a command for the fingers; :class:`RobosuiteExpert` turns those
into an action. None has a memory: which phase a task is in is read off the state.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from latentgym.envs.contract import Expert
from latentgym.envs.experts import LiftExpert, Memoryless

Vector = NDArray[np.float64]

_METRES_PER_UNIT = 0.05
_RADIANS_PER_UNIT = 0.5
_DOWN = np.array([0.0, 0.0, -1.0])
_OPEN, _CLOSE = -1.0, 1.0
_PROPRIO_SIZE = 11
_POSE = slice(7, 14)  # of the one object of a nut or bin task: position and quaternion, after the relative pose


@dataclasses.dataclass(frozen=True)
class Hand:
    """The gripper as the state shows it.

    Attributes:
        position: of the point between the fingertips, ``(3,)`` m.
        rotation: ``(3, 3)``; the first column is the line along which the fingers open, the third the direction that
            they point in.
        opening: distance between the fingers, m.
    """

    position: Vector
    rotation: Vector
    opening: float


@dataclasses.dataclass(frozen=True)
class Command:
    """Where to go, and what the fingers do.

    Attributes:
        position: ``(3,)`` m.
        fingers: -1 opens, +1 closes.
        along: direction in which the fingers should open, ``(3,)``; either sign will do. ``None`` keeps the present.
        pointing: direction in which the fingers should point, ``(3,)``.
    """

    position: Vector
    fingers: float
    along: Vector | None = None
    pointing: Vector = dataclasses.field(default_factory=_DOWN.copy)


class RobosuiteExpert(Memoryless, abc.ABC):
    """Proportional control of the gripper's pose towards the command of the current phase."""

    _GAIN = 2.0
    _TURN_GAIN = 1.0

    def act(self, env: gymnasium.Env[Any, Any], observation: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The action ``(7,)`` for the current state, inside [-1, 1].

        Args:
            env: unused; the observation holds all that is needed.
            observation: with ``"state"``: proprioception (11), then robosuite's ``object-state``.
        """
        state = observation["state"].astype(np.float64)
        first, second = state[3:6], state[6:9]
        hand = Hand(state[:3], np.stack([first, second, np.cross(first, second)], axis=1), state[9] - state[10])
        command = self._command(hand, state[_PROPRIO_SIZE:])
        action = np.empty(7)
        action[:3] = self._GAIN * (command.position - hand.position) / _METRES_PER_UNIT
        action[3:6] = self._TURN_GAIN * _turn(hand.rotation, command) / _RADIANS_PER_UNIT
        action[6] = command.fingers
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    @abc.abstractmethod
    def _command(self, hand: Hand, objects: Vector) -> Command:
        """What to do in the present phase."""


def _turn(rotation: Vector, command: Command) -> Vector:
    """Axis-angle vector ``(3,)`` in world axes from ``rotation`` to the commanded orientation."""
    pointing = command.pointing / np.linalg.norm(command.pointing)
    along = rotation[:, 0] if command.along is None else command.along
    along = along - (along @ pointing) * pointing
    along /= np.linalg.norm(along)
    if along @ rotation[:, 0] < 0:
        along = -along
    wanted = np.stack([along, np.cross(pointing, along), pointing], axis=1)
    difference = wanted @ rotation.T
    axis = np.array([difference[2, 1] - difference[1, 2], difference[0, 2] - difference[2, 0],
                     difference[1, 0] - difference[0, 1]])  # fmt: skip
    sine, cosine = np.linalg.norm(axis) / 2, (np.trace(difference) - 1) / 2
    return np.zeros(3) if sine < 1e-6 else axis / (2 * sine) * math.atan2(sine, cosine)


def _yaw(quaternion: Vector) -> float:
    """Turn about the vertical of a quaternion ``(x, y, z, w)``, in rad."""
    x, y, z, w = quaternion
    return math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def _horizontal(angle: float) -> Vector:
    return np.array([math.cos(angle), math.sin(angle), 0.0])


def _distance(a: Vector, b: Vector) -> float:
    """Horizontal distance, m."""
    return float(np.hypot(*(a - b)[:2]))


def _raised(position: Vector, height: float) -> Vector:
    return position + np.array([0.0, 0.0, height])


class StackExpert(RobosuiteExpert):
    """Grasps the red cube, carries it over the green one, sets it down and lets go.

    The fingers close along an edge of the cube: along the one that keeps them away from the other cube.
    """

    _HOVER_M = 0.08
    _CENTRED_M = 0.012
    _AROUND_M = 0.012
    _HOLDING_OPENING_M = 0.048
    _STACKED_M = 0.045  # between the centres
    _CLEARANCE_M = 0.03
    _ALIGNED_M = 0.008
    _NEAR_M = 0.11

    def _command(self, hand: Hand, objects: Vector) -> Command:
        cube, goal = objects[:3], objects[7:10]
        height = cube[2] - goal[2]
        on_top = _distance(cube, goal) < 0.02 and abs(height - self._STACKED_M) < 0.004
        offset = cube - hand.position
        near = np.linalg.norm(offset) < 0.03
        if on_top and near:
            opened = hand.opening > self._HOLDING_OPENING_M + 0.015
            return Command(_raised(hand.position, self._HOVER_M if opened else 0.0), _OPEN)
        if on_top:
            return Command(_raised(goal, 0.2), _OPEN)
        if near and hand.opening < self._HOLDING_OPENING_M:
            return self._carry(hand, cube, goal)
        return self._approach(hand, cube, goal, _yaw(objects[3:7]))

    def _carry(self, hand: Hand, cube: Vector, goal: Vector) -> Command:
        height = self._STACKED_M + self._CLEARANCE_M
        if _distance(cube, goal) < self._ALIGNED_M:
            target = _raised(goal, self._STACKED_M - 0.004)
        elif cube[2] - goal[2] < height - 0.012 and _distance(cube, goal) > 0.02:
            target = np.append(cube[:2], goal[2] + height + 0.02)
        else:
            target = _raised(goal, height)
        return Command(hand.position + target - cube, _CLOSE)

    def _approach(self, hand: Hand, cube: Vector, goal: Vector, yaw: float) -> Command:
        edges = [_horizontal(yaw), _horizontal(yaw + math.pi / 2)]
        towards = (goal - cube) / max(_distance(goal, cube), 1e-9)
        if _distance(goal, cube) < self._NEAR_M:
            along = min(edges, key=lambda edge: abs(edge[:2] @ towards[:2]))
        else:
            along = max(edges, key=lambda edge: abs(edge @ hand.rotation[:, 0]))
        return _grasp(hand, cube, along, hover=self._HOVER_M, centred=self._CENTRED_M, around=self._AROUND_M)


def _grasp(
    hand: Hand, point: Vector, along: Vector, *, hover: float, centred: float, around: float, turned: float = 0.12
) -> Command:
    """Hover above ``point`` until centred and turned, descend, and close the fingers once they are around it."""
    sine = np.linalg.norm(np.cross(along, hand.rotation[:, 0]))
    in_place = _distance(point, hand.position) < centred
    low = hand.position[2] - point[2] < hover / 2
    ready = in_place and (low or sine < turned)
    if ready and abs(point[2] - hand.position[2]) < around:
        return Command(point, _CLOSE, along)
    return Command(point if ready else _raised(point, hover), _OPEN, along)


class DoorExpert(RobosuiteExpert):
    """Grasps the handle from above, turns it down and pulls the door open.

    The hand leans away from the door, which it would touch otherwise. The direction of the door is read off the handle,
    whose place on the door is known.
    """

    _LEAN_RAD = 0.35
    _HOVER_M = 0.09
    _HANDLE_OUT_M = 0.1005  # from the door's middle plane
    _PIVOT_M = 0.1752  # of the handle, from the door's centre
    _HANDLE_M = 0.125  # from pivot to grasped point
    _HINGE_M = 0.255  # from the door's centre
    _HOLDING_OPENING_M = 0.05
    _TURN_RAD = 0.35
    _TURNED_RAD = 1.1
    _UNLATCHED_RAD = 0.03
    _OPEN_RAD = 0.33
    _STEP_M = 0.05
    _CLEAR_M = 0.12
    _BESIDE_M = 0.02
    _LEANING_RAD = 0.15
    _AROUND_M = 0.014

    def _command(self, hand: Hand, objects: Vector) -> Command:
        door, handle, hinge, turned = objects[:3], objects[3:6], objects[6], objects[13]
        inside = math.atan2(self._HANDLE_OUT_M, self._PIVOT_M - self._HANDLE_M * math.cos(turned))
        angle = math.atan2(*(handle - door)[1::-1]) - inside
        across, out = _horizontal(angle), _horizontal(angle + math.pi / 2)
        pointing = math.cos(self._LEAN_RAD) * _DOWN - math.sin(self._LEAN_RAD) * out
        offset = handle - hand.position
        if np.linalg.norm(offset) < 0.035 and hand.opening < self._HOLDING_OPENING_M:
            if hinge > self._OPEN_RAD:
                return Command(hand.position, _CLOSE, out, pointing)
            if turned > self._TURNED_RAD or hinge > self._UNLATCHED_RAD:
                arm = handle - (door - self._HINGE_M * across)
                way = np.array([-arm[1], arm[0], 0.0]) / np.hypot(arm[0], arm[1])
                return Command(hand.position + self._STEP_M * way + 0.5 * offset, _CLOSE, out, pointing)
            # The point that the handle will be at when it is turned further.
            pivot = handle + self._HANDLE_M * (math.cos(turned) * across - math.sin(turned) * _DOWN)
            aim = turned + self._TURN_RAD
            return Command(
                pivot + self._HANDLE_M * (math.sin(aim) * _DOWN - math.cos(aim) * across), _CLOSE, out, pointing
            )
        return self._approach(hand, handle, out, pointing)

    def _approach(self, hand: Hand, handle: Vector, out: Vector, pointing: Vector) -> Command:
        """Get in front of the handle, above it, and then down on it."""
        offset = hand.position - handle
        above = -offset @ pointing
        beside = np.linalg.norm(offset + above * pointing)
        if beside < self._BESIDE_M and hand.rotation[:, 2] @ pointing > math.cos(self._LEANING_RAD):
            closing = np.linalg.norm(offset) < self._AROUND_M
            return Command(handle, _CLOSE if closing else _OPEN, out, pointing)
        start = handle - self._HOVER_M * pointing
        if above < self._HOVER_M / 2:
            aside = max(0.0, self._CLEAR_M - offset @ out)
            start = np.append((hand.position + aside * out)[:2], start[2] + 0.02)
        return Command(start, _OPEN, out, pointing)


class NutExpert(RobosuiteExpert):
    """Grasps a nut by its handle, carries it over its peg, lowers it and lets go.

    Args:
        peg: place of the peg, ``(2,)`` m.
        square: whether the nut must be turned like its peg.
    """

    _HANDLE_M = 0.054  # from the nut's centre
    _HOVER_M = 0.08
    _CARRY_M = 1.0
    _DOWN_M = 0.87
    _PLACED_M = 0.86
    _HOLDING_OPENING_M = 0.04

    def __init__(self, peg: tuple[float, float], *, square: bool) -> None:
        self._peg, self._square = np.array(peg), square

    def _command(self, hand: Hand, objects: Vector) -> Command:
        nut, yaw = objects[_POSE][:3], _yaw(objects[_POSE][3:])
        handle = nut + self._HANDLE_M * _horizontal(yaw)
        across = _horizontal(yaw + math.pi / 2)
        over = np.hypot(*(nut[:2] - self._peg)) < 0.02
        near = np.linalg.norm(handle - hand.position) < 0.03
        if over and nut[2] < self._PLACED_M:
            return Command(_raised(hand.position, 0.1 if hand.opening > 0.05 else 0.0), _OPEN)
        if near and hand.opening < self._HOLDING_OPENING_M:
            return self._carry(hand, nut, yaw)
        return _grasp(hand, handle, across, hover=self._HOVER_M, centred=0.012, around=0.012)

    def _carry(self, hand: Hand, nut: Vector, yaw: float) -> Command:
        wanted = yaw if not self._square else round(yaw / (math.pi / 2)) * math.pi / 2
        error = math.remainder(wanted - yaw, math.tau)
        turn = np.array([[math.cos(error), -math.sin(error)], [math.sin(error), math.cos(error)]])
        along = np.append(turn @ hand.rotation[:2, 0], 0.0)
        away = np.hypot(*(nut[:2] - self._peg))
        # Where the hand must be for the nut to hang over its peg once it is turned.
        place = self._peg + turn @ (hand.position - nut)[:2]
        aligned = away < 0.006 and abs(error) < 0.06
        below = nut[2] < self._CARRY_M - 0.04
        if aligned or (below and away < 0.012):
            height = hand.position[2] - 0.03
        elif below and away > 0.05:
            return Command(np.append(hand.position[:2], self._CARRY_M + 0.01), _CLOSE, along)
        else:
            height = self._CARRY_M + hand.position[2] - nut[2]
        return Command(np.append(place, height), _CLOSE, along)


class BinExpert(RobosuiteExpert):
    """Grasps the object from above, carries it over its bin and lets go.

    Args:
        bin_centre: middle of the object's bin, ``(2,)`` m.
        grip_m: height above the object's middle at which it is grasped.
        thin_rad: direction of the object's thin side, in its own axes.
        holding_m: opening of the fingers that hold it, at most.
    """

    _HOVER_M = 0.12
    _CARRY_M = 1.08
    _DROP_M = 0.95
    _TABLE_M = 0.8

    def __init__(self, bin_centre: tuple[float, float], grip_m: float, thin_rad: float, holding_m: float) -> None:
        self._bin, self._grip_m = np.array(bin_centre), grip_m
        self._thin_rad, self._holding_m = thin_rad, holding_m

    def _command(self, hand: Hand, objects: Vector) -> Command:
        item, yaw = objects[_POSE][:3], _yaw(objects[_POSE][3:])
        point = _raised(item, self._grip_m)
        away = float(np.hypot(*(item[:2] - self._bin)))
        near = np.linalg.norm(point - hand.position) < 0.04
        holding = near and hand.opening < self._holding_m
        if away < 0.04 and item[2] < self._DROP_M:
            return Command(np.append(hand.position[:2], hand.position[2] if holding else self._CARRY_M), _OPEN)
        if not holding:
            along = _horizontal(yaw + self._thin_rad)
            return _grasp(hand, point, along, hover=self._HOVER_M, centred=0.012, around=0.012)
        over = self._bin + (hand.position - item)[:2]
        if away < 0.02:
            return Command(np.append(over, hand.position[2] - 0.04), _CLOSE)
        if hand.position[2] < self._CARRY_M - 0.05 and away > 0.1:
            return Command(np.append(hand.position[:2], self._CARRY_M + 0.02), _CLOSE)
        return Command(np.append(over, self._CARRY_M), _CLOSE)


ROBOSUITE_EXPERTS: dict[str, Callable[[], Expert]] = {
    "Lift": LiftExpert,
    "Stack": StackExpert,
    "Door": DoorExpert,
    "NutAssemblySquare": functools.partial(NutExpert, (0.23, 0.1), square=True),
    "NutAssemblyRound": functools.partial(NutExpert, (0.23, -0.1), square=False),
    "PickPlaceMilk": functools.partial(BinExpert, (0.0025, 0.1575), 0.045, 0.0, 0.065),
    "PickPlaceBread": functools.partial(BinExpert, (0.1975, 0.1575), 0.015, 0.0, 0.06),
    "PickPlaceCereal": functools.partial(BinExpert, (0.0025, 0.4025), 0.05, 0.0, 0.06),
    "PickPlaceCan": functools.partial(BinExpert, (0.1975, 0.4025), 0.02, 0.0, 0.065),
}
