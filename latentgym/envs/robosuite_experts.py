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
    raised: Vector = position + np.array([0.0, 0.0, height])
    return raised


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

    _LEAN_RAD = 0.45
    _HOVER_M = 0.09
    _HANDLE_OUT_M = 0.1005  # from the door's middle plane
    _PIVOT_M = 0.1752  # of the handle, from the door's centre
    _HANDLE_M = 0.125  # from pivot to grasped point
    _HINGE_M = 0.255  # from the door's centre
    _HOLDING_OPENING_M = 0.05
    _TURN_RAD = 0.35
    _TURNED_RAD = 1.15
    _UNLATCHED_RAD = 0.03
    _OPEN_RAD = 0.33
    _STEP_M = 0.03
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
                return Command(handle + self._STEP_M * way, _CLOSE, out, pointing)
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
            aside = max(0.0, self._CLEAR_M - float(offset @ out))
            start = np.append((hand.position + aside * out)[:2], start[2] + 0.02)
        return Command(start, _OPEN, out, pointing)


class NutExpert(RobosuiteExpert):
    """Grasps a nut by its handle, carries it over its peg and lets it fall once the peg is in the hole.

    Args:
        peg: horizontal position of the peg, m.
        handle: from the nut's centre to its handle, m.
        square: whether the hole only takes the peg at right angles.
    """

    _PEG_TOP_M = 0.95
    _CLEARANCE_M = 0.04
    _THREADED_M = 0.012  # of the nut's centre below the peg's top
    _ON_PEG_M = 0.03
    _HOLDING_OPENING_M = 0.045
    _NEAR_M = 0.035
    _ALIGNED_RAD = 0.06
    _TURN_RAD = 0.8
    _BESIDE_RAD = 1.3
    _HOVER_M = 0.1
    _CENTRED_M = 0.01
    _AROUND_M = 0.01

    def __init__(self, peg: tuple[float, float], handle: float, *, square: bool) -> None:
        self.aligned = 0.005 if square else 0.009  # of about 7 and 11 mm that the peg leaves free
        self.peg, self.handle, self.square = np.array([*peg, self._PEG_TOP_M]), handle, square

    def _command(self, hand: Hand, objects: Vector) -> Command:
        nut, yaw = objects[7:10], _yaw(objects[10:14])
        grasped = nut + self.handle * _horizontal(yaw)
        over_peg = _distance(nut, self.peg) < self._ON_PEG_M
        if over_peg and nut[2] < self._PEG_TOP_M - self._THREADED_M:
            return Command(hand.position, _OPEN)
        if np.linalg.norm(grasped - hand.position) < self._NEAR_M and hand.opening < self._HOLDING_OPENING_M:
            return self._carry(hand, nut, yaw)
        along = _horizontal(yaw + math.pi / 2)
        return _grasp(hand, grasped, along, hover=self._HOVER_M, centred=self._CENTRED_M, around=self._AROUND_M)

    def _carry(self, hand: Hand, nut: Vector, yaw: float) -> Command:
        turn = self._wanted(yaw) - yaw
        height = self._PEG_TOP_M + self._CLEARANCE_M
        away = _distance(nut, self.peg)
        aligned = away < self.aligned and abs(turn) < self._ALIGNED_RAD
        if aligned or (away < 2 * self.aligned and nut[2] < self._PEG_TOP_M + 0.01):
            height = self._PEG_TOP_M - 2 * self._THREADED_M
        # Up first: the nut would push the peg's side.
        place = nut[:2] if nut[2] < self._PEG_TOP_M + 0.015 and away > self._ON_PEG_M else self.peg[:2]
        # The nut turns with the hand, by less than the right angle at which the fingers would change sides.
        along = _horizontal(yaw + float(np.clip(turn, -self._TURN_RAD, self._TURN_RAD)) + math.pi / 2)
        return Command(hand.position + np.append(place, height) - nut, _CLOSE, along)

    def _wanted(self, yaw: float) -> float:
        """The nearest yaw that fits the peg and does not hold the nut from behind it, out of the arm's reach."""
        if not self.square:
            return math.copysign(max(abs(yaw), self._BESIDE_RAD), yaw)
        return min((-math.pi, -math.pi / 2, math.pi / 2, math.pi), key=lambda quarter: abs(quarter - yaw))


# Where robosuite's arena has the pegs, and how far a nut's handle is from its centre.
_SQUARE_NUT = functools.partial(NutExpert, (0.23, 0.1), 0.054, square=True)
_ROUND_NUT = functools.partial(NutExpert, (0.23, -0.1), 0.06, square=False)


class BothNutsExpert(RobosuiteExpert):
    """The round nut, then the square one.

    Upright over the far pegs, the arm stretches until it does not come back. So the hand leans outwards there, which
    keeps the elbow bent, and turns back on the way to the second nut instead of further round.
    """

    _LEAN_RAD = 0.5
    _LEANING_M = 0.12  # of the way from the table's middle to the pegs
    _FALLEN_M = 0.87
    _AT_PEGS_M = 0.1
    _NEUTRAL_RAD = math.pi / 2  # in which direction the fingers open after a reset
    _TURN_BACK_RAD = 1.3

    def __init__(self) -> None:
        self._square, self._round = _SQUARE_NUT(), _ROUND_NUT()

    def _command(self, hand: Hand, objects: Vector) -> Command:
        square, ring = objects[:14], objects[14:28]
        if not self._has_fallen(self._round, ring):
            return self._leaning(hand, self._round._command(hand, ring))
        command = self._square._command(hand, square)
        if command.fingers == _CLOSE or _distance(square[7:10], self._square.peg) < self._AT_PEGS_M:
            return command
        if hand.position[0] > self._AT_PEGS_M:
            back = np.array([0.0, *hand.position[1:]])
            return self._leaning(hand, Command(back, _OPEN))
        return self._turned_back(hand, command)

    def _has_fallen(self, nut: NutExpert, objects: Vector) -> bool:
        return _distance(objects[7:10], nut.peg) < self._AT_PEGS_M and objects[9] < self._FALLEN_M

    def _leaning(self, hand: Hand, command: Command) -> Command:
        lean = self._LEAN_RAD * float(np.clip(hand.position[0] / self._LEANING_M, 0.0, 1.0))
        outwards = np.array([math.sin(lean), 0.0, -math.cos(lean)])
        return dataclasses.replace(command, pointing=outwards)

    def _turned_back(self, hand: Hand, command: Command) -> Command:
        """The fingers' direction within a right angle of the neutral one, reached the way that the hand came."""
        assert command.along is not None
        angles = (
            math.atan2(vector[1], vector[0]) - self._NEUTRAL_RAD for vector in (hand.rotation[:, 0], command.along)
        )
        present, wanted = (math.remainder(angle, math.tau) for angle in angles)
        wanted = math.remainder(wanted, math.pi)
        turn = float(np.clip(wanted - present, -self._TURN_BACK_RAD, self._TURN_BACK_RAD))
        return dataclasses.replace(command, along=_horizontal(present + turn + self._NEUTRAL_RAD))


ROBOSUITE_EXPERTS: dict[str, Callable[[], Expert]] = {
    "Lift": LiftExpert,
    "Stack": StackExpert,
    "Door": DoorExpert,
    "NutAssembly": BothNutsExpert,
    "NutAssemblySquare": _SQUARE_NUT,
    "NutAssemblyRound": _ROUND_NUT,
}
