"""One CALVIN scene in PyBullet, step for step as calvin_env (revision 797142c) simulates it.

Every order and parameter here matters to the bit: loading order, motor forces, the single simulator step after a
reset. Unlike the original, a world is loaded anew at every reset, because resetting a used one is not repeatable.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.envs.calvin.client import Client
from latentgym.envs.calvin.rendering import NATIVE_SIZE, Cameras
from latentgym.envs.calvin.robot import Robot
from latentgym.envs.calvin.scene import SceneSpec
from latentgym.envs.calvin.scene_objects import Block, Button, Joint, Light, Switch, touches
from latentgym.envs.calvin.snapshot import Snapshot
from latentgym.errors import LatentGymError

CONTROL_HZ = 30.0
ROBOT_OBS_SIZE, SCENE_OBS_SIZE = 15, 24

_SIMULATION_HZ = 240
_SUBSTEPS = 8
_GRAVITY = -9.8
_SCALING = 0.8
_PLACEMENT_ATTEMPTS = 1000
_JOINT_STATES = 4  # doors, button, switch


class World:
    """A scene with its robot, ready to be reset.

    Args:
        scene: which one.
        assets: folder of CALVIN's assets.
        egl: whether EGL renders; else TinyRenderer, a software rasteriser.
        frame_sizes: camera to side of its frames in pixels.

    Attributes:
        client: the physics client.
        robot: the arm; made anew by :meth:`reset`.

    Raises:
        LatentGymError: if EGL is asked for and does not load.
        MissingExtraError: if PyBullet is not installed.
    """

    def __init__(
        self, scene: SceneSpec, assets: Path, *, egl: bool = False, frame_sizes: Mapping[str, int] = NATIVE_SIZE
    ) -> None:
        self._scene, self._data = scene, assets / "data"
        self.client = Client(max(frame_sizes.values()) if egl else None)
        self._cameras = Cameras(self.client, frame_sizes)
        self.client.resetSimulation()
        self.client.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
        self.client.setTimeStep(1.0 / _SIMULATION_HZ)

    def reset(
        self,
        rng: np.random.Generator,
        robot_obs: NDArray[np.float64] | None = None,
        scene_obs: NDArray[np.float64] | None = None,
    ) -> None:
        """Load the world and bring it into a state; what is not given is at rest, blocks anywhere.

        Observations then differ from what was asked for by up to 2e-3, since one simulator step is taken.

        Args:
            rng: places blocks where ``scene_obs`` does not; not used where it does.
            robot_obs: ``(15,)``, of which only joint angles and gripper opening count.
            scene_obs: ``(24,)`` with blocks in this scene's order.

        Raises:
            LatentGymError: if a light is neither 0 nor 1, or blocks find no place.
        """
        with self.client.drawing():
            self._load(rng if scene_obs is None else self._second_loading())
            if scene_obs is None:
                self._scatter_blocks(rng)
            else:
                self._arrange(scene_obs)
            self.robot.reset(robot_obs)
            self.client.stepSimulation()

    def _second_loading(self) -> np.random.Generator:
        """Where to load blocks that are then moved: the places leave a trace of 1e-10 in what follows.

        These are the original's, made with its default seed and loaded once more, as for a repeatable reset.
        """
        rng = np.random.default_rng(0)
        for _ in self._scene.blocks:
            self._random_pose(rng)
        return rng

    def _load(self, rng: np.random.Generator) -> None:
        client = self.client
        client.resetSimulation()
        client.setGravity(0, 0, _GRAVITY)
        self.robot = Robot(client, self._data, self._scene)
        self._blocks = {}
        for name, file in self._scene.blocks.items():
            body = client.loadURDF(str(self._data / file), *self._random_pose(rng), globalScaling=_SCALING)
            self._blocks[name] = Block(client, body)
        table_file = str(self._data / self._scene.table_file)
        self._table: int = client.loadURDF(table_file, (0, 0, 0), (0, 0, 0, 1), globalScaling=_SCALING)
        table = self._table
        names = [client.getJointInfo(table, index)[12].decode() for index in range(client.getNumJoints(table))]
        self._table_links = {name: index for index, name in enumerate(names)} | {"base_link": -1}
        self._doors = {name: Joint(client, table, name) for name in ("base__slide", "base__drawer")}
        self._lights = {
            name: Light(client, table, f"{'light' if name == 'lightbulb' else name}_link", colour)
            for name, colour in self._scene.lights.items()
        }
        self._button = Button(client, table, "base__button", self._lights["led"])
        self._switch = Switch(client, table, "base__switch", self._lights["lightbulb"])
        client.loadURDF(str(self._data / "plane/plane.urdf"))

    def _arrange(self, scene_obs: NDArray[np.float64]) -> None:
        for door, position in zip(self._doors.values(), scene_obs[:2], strict=True):
            door.reset(position)
        for light, state in zip(self._lights.values(), scene_obs[_JOINT_STATES:6], strict=True):
            light.reset(state)
        self._button.reset(scene_obs[2])
        self._switch.reset(scene_obs[3])
        for block, pose in zip(self._blocks.values(), scene_obs[6:].reshape(3, 6), strict=True):
            block.reset(pose[:3], self.client.pybullet.getQuaternionFromEuler(pose[3:]))

    def _scatter_blocks(self, rng: np.random.Generator) -> None:
        """Doors closed, lights off, blocks anywhere such that no two touch."""
        for joint in (*self._doors.values(), self._button, self._switch):
            joint.reset(0)
        for light in self._lights.values():
            light.reset(0)
        for _ in range(_PLACEMENT_ATTEMPTS):
            for block in self._blocks.values():
                block.reset(*self._random_pose(rng))
            self.client.stepSimulation()
            pairs = itertools.combinations(self._blocks.values(), 2)
            if not any(self.client.getContactPoints(bodyA=one.uid, bodyB=other.uid) for one, other in pairs):
                return
        raise LatentGymError(
            f"scene {self._scene.name}: no place found for the blocks in {_PLACEMENT_ATTEMPTS} attempts; check the "
            "surfaces in the assets' scene file"
        )

    def _random_pose(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        low, high = self._scene.surfaces[str(rng.choice(list(self._scene.surfaces)))]
        position = rng.uniform(low, high)
        euler = rng.uniform([0, 0, -np.pi], [0, 0, np.pi])
        return position, np.array(self.client.pybullet.getQuaternionFromEuler(euler))

    def step(self, action: NDArray[np.floating[Any]], *, relative: bool = True) -> None:
        """Simulate one control step of 1/30 s.

        Args:
            action: ``(7,)``, relative (in units of 0.02 m and 0.05 rad) or absolute (m and rad); the last entry opens
                (> 0) or closes the gripper. It is computed with in its own precision.
            relative: which of the two.
        """
        if relative:
            self.robot.move_by(action)
        else:
            self.robot.move_to(action[:3], action[3:6], action[6])
        for _ in range(_SUBSTEPS):
            self.client.stepSimulation()
        self._button.step()
        self._switch.step()

    def robot_obs(self) -> NDArray[np.float64]:
        """``(15,)``: tcp position (m) and Euler angles (rad), opening (m), joint angles (rad), gripper command."""
        return self.robot.observation()

    def scene_obs(self) -> NDArray[np.float64]:
        """``(24,)``: slider, drawer, button, switch, light bulb, LED, then position and Euler angles of each block."""
        joints = [joint.position for joint in (*self._doors.values(), self._button, self._switch)]
        lights = [float(light.on) for light in self._lights.values()]
        return np.concatenate([joints, lights, *(block.observation() for block in self._blocks.values())])

    def snapshot(self) -> Snapshot:
        """What the task oracle looks at."""
        return Snapshot(
            robot=self.robot.uid,
            table=self._table,
            table_links=self._table_links,
            robot_touches=frozenset(contact.body for contact in touches(self.client, self.robot.uid)),
            blocks={name: block.state() for name, block in self._blocks.items()},
            doors={name: door.position for name, door in self._doors.items()},
            lights={name: light.on for name, light in self._lights.items()},
        )

    def target_pose(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position (m) and Euler angles (rad) of the robot's target."""
        return self.robot.target_pose()

    def link_box(self, link: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest corner ``(3,)`` in metres of the box around one link of the table."""
        low, high = self.client.getAABB(self._table, self._table_links[link])
        return np.array(low), np.array(high)

    def render(self, camera: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Frame ``(S, S, 3)`` uint8 and depth ``(S, S)`` float32 in metres of one camera."""
        with self.client.drawing():
            return self._cameras.render(camera, self.robot.uid)

    def close(self) -> None:
        """Free the physics client and its window."""
        self.client.close()
