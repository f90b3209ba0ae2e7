"""The Panda arm with long fingers: position-controlled joints behind a null-space inverse kinematics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentgym.envs.calvin.client import Client
from latentgym.envs.calvin.scene import SceneSpec

METRES_PER_UNIT = 0.02
RADIANS_PER_UNIT = 0.05

_URDF = "franka_panda/panda_longer_finger.urdf"
_ARM_JOINTS = range(7)
_FINGER_JOINTS = (9, 11)
_TCP_LINK = 15
_MAX_FORCE = 200.0
_MAX_VELOCITY = 2
_FINGER_FORCE, _OPENING_FORCE = 200, 2.0
_FINGER_VELOCITY = 1
_OPEN_FINGER_M = 0.04
_LOWER_LIMITS = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
_UPPER_LIMITS = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])
_NULL_SPACE_LIMIT = 7  # wider than any joint can turn: the null space only pulls towards the rest pose
_BASE_RADIUS_M, _BASE_OFFSET_M = 0.13, 0.05


class Robot:
    """The arm in one world.

    Relative actions move a *target* pose that is kept from step to step; the arm lags behind it.

    Args:
        client: the physics client to load into.
        data: the asset folder's ``data``.
        scene: where the base stands and how the arm rests.

    Attributes:
        uid: PyBullet's number of the body.
        gripper_action: the last command, 1 open or -1 closed.
    """

    def __init__(self, client: Client, data: Path, scene: SceneSpec) -> None:
        self._client = client
        self._rest_joints = np.array(scene.rest_joints)
        self.gripper_action = 1
        self.uid: int = client.loadURDF(
            str(data / _URDF), basePosition=scene.robot_base, baseOrientation=(0, 0, 0, 1), useFixedBase=True
        )
        self._add_pedestal(scene.robot_base)
        self._centre_fingers()
        dofs = client.computeDofCount(self.uid)
        rest = [*self._rest_joints, _OPEN_FINGER_M, _OPEN_FINGER_M]
        limits = ([-_NULL_SPACE_LIMIT] * dofs, [_NULL_SPACE_LIMIT] * dofs, [_NULL_SPACE_LIMIT] * dofs)
        self._null_space = (*limits, rest)
        self._target_position = self._target_euler = np.zeros(3)
        self.reset(None)

    def _add_pedestal(self, base: tuple[float, float, float]) -> None:
        x, y, z = base
        shape = self._client.createVisualShape(
            shapeType=self._client.pybullet.GEOM_CYLINDER,
            rgbaColor=[1, 1, 1, 1],
            radius=_BASE_RADIUS_M,
            length=z,
            visualFramePosition=[x - _BASE_OFFSET_M, y, z / 2],
        )
        self._client.createMultiBody(baseVisualShapeIndex=shape)

    def _centre_fingers(self) -> None:
        gear = self._client.createConstraint(
            self.uid,
            _FINGER_JOINTS[0],
            self.uid,
            _FINGER_JOINTS[1],
            jointType=self._client.pybullet.JOINT_GEAR,
            jointAxis=[1, 0, 0],
            parentFramePosition=[0, 0, 0],
            childFramePosition=[0, 0, 0],
        )
        self._client.changeConstraint(gear, gearRatio=-1, erp=0.1, maxForce=50)

    def reset(self, robot_obs: NDArray[np.float64] | None) -> None:
        """Put the arm where ``robot_obs`` ``(15,)`` says (only joint angles and opening count), or at rest, open."""
        joints = self._rest_joints if robot_obs is None else robot_obs[7:14]
        finger = _OPEN_FINGER_M if robot_obs is None else robot_obs[6] / 2
        for index in _ARM_JOINTS:
            self._client.resetJointState(self.uid, index, joints[index])
            self._hold(index, joints[index], _MAX_FORCE, _MAX_VELOCITY)
        for index in _FINGER_JOINTS:
            self._client.resetJointState(self.uid, index, finger)
            self._hold(index, finger, _FINGER_FORCE, _FINGER_VELOCITY)
        position, euler = self.tcp_pose()
        self._target_position, self._target_euler = np.array(position), np.array(euler)

    def move_by(self, action: NDArray[np.floating[Any]]) -> None:
        """Move the target by a relative action ``(7,)``; it is computed with in the action's own precision."""
        self._target_position += action[:3] * METRES_PER_UNIT
        self._target_euler += action[3:6] * RADIANS_PER_UNIT
        self.move_to(self._target_position, self._target_euler, action[6])

    def move_to(self, position: ArrayLike, euler: ArrayLike, gripper: float) -> None:
        """Drive towards a pose of the tool centre point and open (1) or close (-1) the gripper."""
        orientation = self._client.pybullet.getQuaternionFromEuler(euler)
        joints = self._client.calculateInverseKinematics(self.uid, _TCP_LINK, position, orientation, *self._null_space)
        joints = np.clip(joints[: len(_ARM_JOINTS)], _LOWER_LIMITS, _UPPER_LIMITS)
        for index in _ARM_JOINTS:
            self._hold(index, joints[index], _MAX_FORCE, _MAX_VELOCITY)
        self.gripper_action = 1 if gripper > 0 else -1
        opening = self.gripper_action == 1
        for index in _FINGER_JOINTS:
            target, force = (_OPEN_FINGER_M, _OPENING_FORCE) if opening else (0, _FINGER_FORCE)
            self._hold(index, target, force, _FINGER_VELOCITY)

    def _hold(self, joint: int, target: float, force: float, velocity: float) -> None:
        self._client.setJointMotorControl2(
            bodyIndex=self.uid,
            jointIndex=joint,
            controlMode=self._client.pybullet.POSITION_CONTROL,
            targetPosition=target,
            force=force,
            maxVelocity=velocity,
        )

    def target_pose(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position in metres and Euler angles in rad that relative actions have led the target to."""
        return self._target_position.copy(), self._target_euler.copy()

    def tcp_pose(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Position in metres and Euler angles in rad of the tool centre point."""
        position, orientation = self._client.getLinkState(self.uid, _TCP_LINK)[:2]
        return position, self._client.pybullet.getEulerFromQuaternion(orientation)

    def observation(self) -> NDArray[np.float64]:
        """``robot_obs`` ``(15,)``: tcp position and Euler angles, opening, seven joint angles, last gripper command."""
        position, euler = self.tcp_pose()
        joints = [state[0] for state in self._client.getJointStates(self.uid, [*_ARM_JOINTS, *_FINGER_JOINTS])]
        return np.array([*position, *euler, joints[7] + joints[8], *joints[:7], self.gripper_action], np.float64)
