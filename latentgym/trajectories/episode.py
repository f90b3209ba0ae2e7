"""The trajectory contract: one recorded episode, the meaning of its actions, and where it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentgym.errors import LatentGymError


@dataclasses.dataclass(frozen=True)
class ActionSpec:
    """What each dimension of an action means.

    Attributes:
        names: one name per dimension, A in all.
        frame: frame of reference of translations and rotations.
        mode: ``"delta"`` (displacement per step), ``"velocity"`` or ``"absolute"``.
        units: physical unit per dimension (``"m"``, ``"rad"``, ``"m/s"``, ``"1"``).
        scale: physical amount that an action value of 1.0 stands for, per dimension.
        low: smallest admissible value per dimension.
        high: largest admissible value per dimension.
        translation: indices of the dimensions that translate.
        rotation: indices of the dimensions that rotate.
        gripper: indices of the dimensions that open or close a gripper.
        gripper_close_sign: sign of a closing gripper action (0 where there is none).
    """

    names: tuple[str, ...]
    frame: Literal["world", "end_effector", "joint", "environment"]
    mode: Literal["delta", "velocity", "absolute"]
    units: tuple[str, ...]
    scale: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    translation: tuple[int, ...] = ()
    rotation: tuple[int, ...] = ()
    gripper: tuple[int, ...] = ()
    gripper_close_sign: Literal[-1, 0, 1] = 0

    def __post_init__(self) -> None:
        lengths = {len(field) for field in (self.names, self.units, self.scale, self.low, self.high)}
        if lengths != {len(self.names)}:
            raise LatentGymError(
                f"ActionSpec: names, units, scale, low and high must have one entry per dimension; got lengths "
                f"{len(self.names)}, {len(self.units)}, {len(self.scale)}, {len(self.low)}, {len(self.high)}"
            )

    @property
    def size(self) -> int:
        """Number of action dimensions, A."""
        return len(self.names)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ActionSpec:
        """Rebuild a spec from JSON, where tuples are lists."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where data came from: enough to say why two recordings differ.

    Attributes:
        versions: package name to version, for Python, NumPy, the simulator and this suite.
        gl: GL backend, vendor, renderer and version strings (empty where nothing was rendered).
        seed: root seed of the recording.
        command: the command or call that made it.
        revision: git revision of the working tree, empty outside one.
        settings: further settings that determine the data (image size, render quality …).
    """

    versions: dict[str, str]
    gl: dict[str, str]
    seed: int
    command: str
    revision: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Episode:
    """One episode: T actions and T + 1 observations.

    Attributes:
        frames: camera name to ``(T+1, H, W, 3)`` uint8, upright RGB.
        action: ``(T, A)`` float32, the executed action in the environment's own action space.
        proprio: ``(T+1, P)`` float32, what the robot knows of itself.
        state: ``(T+1, S)`` float32, privileged low-dimensional state (poses of effector and objects, goal).
        sim_state: ``(T+1, Q)`` float64, full simulator state, from which frames can be rendered again; Q may be 0.
        reward: ``(T,)`` float32.
        terminated: ``(T,)`` bool.
        truncated: ``(T,)`` bool.
        success: ``(T,)`` bool, the environment's ``is_success`` after each step.
        random_action: ``(T,)`` bool, true where the action was drawn at random and is no function of the state.
        expert_action: ``(T, A)`` float32, what the expert would have done (the cloning target), or ``None``.
        seed: seed that ``reset`` was called with.
        policy: name of the behaviour policy (``"expert"``, ``"noisy-expert"``, ``"random"`` …).
        instruction: language instruction, empty where there is none.
        env_id: id of the environment.
        info: further JSON-serialisable facts (task, variant …).
        extras: further arrays of any plain dtype, one row per observation, such as depth ``(T+1, H, W)``.
    """

    frames: Mapping[str, NDArray[np.uint8]]
    action: NDArray[np.float32]
    proprio: NDArray[np.float32]
    state: NDArray[np.float32]
    sim_state: NDArray[np.float64]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    success: NDArray[np.bool_]
    random_action: NDArray[np.bool_]
    seed: int
    policy: str
    env_id: str
    instruction: str = ""
    expert_action: NDArray[np.float32] | None = None
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extras: Mapping[str, NDArray[Any]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        """Number of actions, T."""
        return int(self.action.shape[0])

    def validate(self) -> None:
        """Check shapes, dtypes and finiteness; every problem is listed at once.

        Raises:
            LatentGymError: if anything disagrees with the contract.
        """
        problems = [*self._shape_problems(), *self._value_problems()]
        if problems:
            raise LatentGymError(f"episode (seed {self.seed}) of {self.env_id}: " + "; ".join(problems))

    def _shape_problems(self) -> list[str]:
        steps = len(self)
        expected: dict[str, tuple[int, int, type]] = {
            "action": (steps, 2, np.float32),
            "proprio": (steps + 1, 2, np.float32),
            "state": (steps + 1, 2, np.float32),
            "sim_state": (steps + 1, 2, np.float64),
            "reward": (steps, 1, np.float32),
            "terminated": (steps, 1, np.bool_),
            "truncated": (steps, 1, np.bool_),
            "success": (steps, 1, np.bool_),
            "random_action": (steps, 1, np.bool_),
        }
        if self.expert_action is not None:
            expected["expert_action"] = (steps, 2, np.float32)
        problems = [] if steps else ["action: expected at least one step, found none"]
        for name, (length, ndim, dtype) in expected.items():
            array = getattr(self, name)
            if array.ndim != ndim or array.shape[0] != length or array.dtype != dtype:
                problems.append(
                    f"{name}: expected {ndim}-D of length {length} and dtype {np.dtype(dtype)}, "
                    f"found shape {array.shape} and dtype {array.dtype}"
                )
        for camera, frames in self.frames.items():
            if frames.ndim != 4 or frames.shape[0] != steps + 1 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
                problems.append(
                    f"frames[{camera!r}]: expected ({steps + 1}, H, W, 3) uint8, found {frames.shape} {frames.dtype}"
                )
        for name, array in self.extras.items():
            if array.ndim < 1 or array.shape[0] != steps + 1 or array.dtype.kind not in "biuf":
                problems.append(
                    f"extras[{name!r}]: expected {steps + 1} rows of numbers, found {array.shape} {array.dtype}"
                )
        return problems

    def _value_problems(self) -> list[str]:
        names = ["action", "proprio", "state", "reward", *(["expert_action"] if self.expert_action is not None else [])]
        problems = []
        for name in names:
            finite = np.isfinite(getattr(self, name))
            if not finite.all():
                step = int(np.argwhere(~finite)[0][0])
                problems.append(f"{name}: NaN or infinite value, first at step {step}")
        return problems
