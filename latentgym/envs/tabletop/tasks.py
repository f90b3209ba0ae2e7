"""The tabletop tasks: how an episode starts and when it counts as solved."""

from __future__ import annotations

import abc
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentgym.envs.tabletop.scene import PUCK_RADIUS

Vector = NDArray[np.float64]


class Snapshot(NamedTuple):
    """The low-dimensional state of a scene, SI units.

    Attributes:
        gripper: ``(3,)`` position of the pocket's centre, at fingertip height.
        gripper_velocity: ``(3,)``.
        puck: ``(2,)`` position; zeros in a scene without a puck.
        puck_velocity: ``(2,)``.
        goal: ``(3,)`` position of the goal.
    """

    gripper: Vector
    gripper_velocity: Vector
    puck: Vector
    puck_velocity: Vector
    goal: Vector


class Task(abc.ABC):
    """A way to place the scene and to judge it.

    Attributes:
        goal: kind of goal that the scene shows.
        horizon: default number of steps of an episode.
        puck_damping: see :class:`~latentgym.envs.tabletop.scene.SceneSpec`.
        instruction: what to do, in words.
        state_names: names of the entries of :meth:`state`.
    """

    goal: ClassVar[str]
    horizon: ClassVar[int]
    puck_damping: ClassVar[float | None] = None
    instruction: ClassVar[str]
    state_names: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def place(self, rng: np.random.Generator) -> Snapshot:
        """Draw the state that an episode starts from."""

    @abc.abstractmethod
    def success(self, scene: Snapshot) -> bool:
        """Whether the task is solved in ``scene``; a function of the state alone, so it can be lost again."""

    @abc.abstractmethod
    def distance(self, scene: Snapshot) -> float:
        """Distance in metres that the task wants to be zero; the reward is its negative."""

    @abc.abstractmethod
    def state(self, scene: Snapshot) -> NDArray[np.float32]:
        """``(S,)`` float32: positions (m) and velocities (m/s) from which the task can be solved without history."""


GRIPPER_NAMES = tuple(f"gripper_{part}" for part in ("x", "y", "z", "vx", "vy", "vz"))
_PUCK_NAMES = tuple(f"puck_{part}" for part in ("x", "y", "vx", "vy"))


def _vector(*parts: Vector) -> NDArray[np.float32]:
    return np.concatenate(parts).astype(np.float32)


def _start(rng: np.random.Generator, centre: tuple[float, float, float], spread: float) -> Vector:
    start: Vector = np.asarray(centre) + rng.uniform(-spread, spread, size=3)
    return start


class Reach(Task):
    """Bring the gripper to a target that floats above the table, and be slow there."""

    goal = "target"
    horizon = 30
    instruction = "move the gripper to the green ball"
    state_names = (*GRIPPER_NAMES, "goal_x", "goal_y", "goal_z")
    tolerance_m = 0.04
    speed_limit = 0.18

    def place(self, rng: np.random.Generator) -> Snapshot:
        """Gripper near the middle, target anywhere at least 12 cm away."""
        gripper = _start(rng, (0.0, 0.0, 0.12), 0.04)
        goal = gripper
        while np.linalg.norm(goal - gripper) < 0.12:
            goal = rng.uniform((-0.22, -0.2, 0.03), (0.22, 0.2, 0.22))
        return Snapshot(gripper, np.zeros(3), np.zeros(2), np.zeros(2), goal)

    def success(self, scene: Snapshot) -> bool:
        """Within 4 cm of the target at less than 18 cm/s."""
        near = self.distance(scene) < self.tolerance_m
        return bool(near and np.linalg.norm(scene.gripper_velocity) < self.speed_limit)

    def distance(self, scene: Snapshot) -> float:
        """From the gripper to the target."""
        return float(np.linalg.norm(scene.gripper - scene.goal))

    def state(self, scene: Snapshot) -> NDArray[np.float32]:
        """Gripper position and velocity, target position: 9 numbers."""
        return _vector(scene.gripper, scene.gripper_velocity, scene.goal)


class Push(Task):
    """Push the puck onto the pad; the gripper always starts behind the puck, the pad always lies in front of it."""

    goal = "pad"
    horizon = 50
    puck_damping = 4.0
    instruction = "push the red puck onto the green pad"
    state_names = (*GRIPPER_NAMES, *_PUCK_NAMES, "goal_x", "goal_y")
    tolerance_m = 0.035
    offset_m = 0.08

    def place(self, rng: np.random.Generator) -> Snapshot:
        """Gripper far from the camera and raised, puck in the middle, pad near the camera and never straight ahead.

        Were it straight ahead, a blind sweep would carry the puck over it.
        """
        gripper = _start(rng, (0.0, 0.21, 0.1), 0.04)
        puck = rng.uniform((-0.16, 0.0), (0.16, 0.08))
        goal_x = puck[0]
        while abs(goal_x - puck[0]) < self.offset_m:
            goal_x = rng.uniform(-0.18, 0.18)
        goal = np.array([goal_x, rng.uniform(-0.22, -0.12), 0.0])
        return Snapshot(gripper, np.zeros(3), puck, np.zeros(2), goal)

    def success(self, scene: Snapshot) -> bool:
        """Puck's centre within 3.5 cm of the pad's."""
        return self.distance(scene) < self.tolerance_m

    def distance(self, scene: Snapshot) -> float:
        """From the puck to the pad."""
        return float(np.linalg.norm(scene.puck - scene.goal[:2]))

    def state(self, scene: Snapshot) -> NDArray[np.float32]:
        """Gripper and puck positions and velocities, pad position: 12 numbers."""
        return _vector(scene.gripper, scene.gripper_velocity, scene.puck, scene.puck_velocity, scene.goal[:2])


class Intercept(Task):
    """Be in place on the line before a sliding puck gets there, and hold it.

    The puck's start and its crossing point are drawn independently and the puck is about as fast as the gripper, so
    where to wait depends on its velocity, which one frame does not show. A missed puck leaves the reachable space.
    """

    goal = "line"
    horizon = 30
    puck_damping = 0.0
    instruction = "catch the red puck at the green line"
    state_names = (*GRIPPER_NAMES, *_PUCK_NAMES)
    line_y = 0.17
    speed_limit = 0.2

    def place(self, rng: np.random.Generator) -> Snapshot:
        """Gripper raised behind the line; the puck starts near the camera and crosses at least 7 cm aside of it."""
        gripper = _start(rng, (0.0, 0.2, 0.09), 0.03)
        start = np.array([rng.uniform(-0.25, 0.25), rng.uniform(-0.3, -0.24)])
        crossing = gripper[0]
        while abs(crossing - gripper[0]) < 0.07:
            crossing = rng.uniform(-0.22, 0.22)
        duration_s = rng.uniform(0.8, 1.1)
        velocity = (np.array([crossing, self.line_y]) - start) / duration_s
        return Snapshot(gripper, np.zeros(3), start, velocity, np.array([0.0, self.line_y, 0.0]))

    def success(self, scene: Snapshot) -> bool:
        """Puck in the lowered gripper's pocket, at less than 20 cm/s relative to it."""
        offset = scene.puck - scene.gripper[:2]
        held = abs(offset[0]) < 0.04 and abs(offset[1]) < PUCK_RADIUS and scene.gripper[2] < 0.03
        slip = np.linalg.norm(scene.puck_velocity - scene.gripper_velocity[:2])
        return bool(held and slip < self.speed_limit)

    def distance(self, scene: Snapshot) -> float:
        """From the gripper to the puck, in the plane."""
        return float(np.linalg.norm(scene.puck - scene.gripper[:2]))

    def state(self, scene: Snapshot) -> NDArray[np.float32]:
        """Gripper and puck positions and velocities: 10 numbers."""
        return _vector(scene.gripper, scene.gripper_velocity, scene.puck, scene.puck_velocity)


TASKS: dict[str, type[Task]] = {"Reach": Reach, "Push": Push, "Intercept": Intercept}
