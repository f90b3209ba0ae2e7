"""CALVIN as a Gymnasium environment: ``latentgym/Calvin{A,B,C,D}-v0``."""

from __future__ import annotations

import dataclasses
import os
import string
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from latentgym.envs.calvin.actions import ACTION_SPECS, checked_action
from latentgym.envs.calvin.assets import find_assets, instructions
from latentgym.envs.calvin.rendering import NATIVE_SIZE, RENDERERS, choose_renderer
from latentgym.envs.calvin.scene import load_scene
from latentgym.envs.calvin.simulator import Simulator
from latentgym.envs.calvin.snapshot import Snapshot
from latentgym.envs.calvin.start_states import draw_start
from latentgym.envs.calvin.tasks import predicate, solved_tasks
from latentgym.envs.calvin.world import CONTROL_HZ, ROBOT_OBS_SIZE, SCENE_OBS_SIZE, World
from latentgym.envs.contract import EnvContract, Expert
from latentgym.errors import LatentGymError, UnknownNameError

HORIZON = 360
"""Steps that the official evaluation gives an instruction."""

Observation = dict[str, Any]
_CAMERAS = ("static", "gripper")
_RESET_OPTIONS = ("robot_obs", "scene_obs", "task")
_BACKENDS = ("latentgym", "calvin_env")
_LONGEST_INSTRUCTION = 200
_GRASP_ATTEMPTS = 20


class CalvinEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """A Panda arm before a table with a sliding door, a drawer, a button, a switch and three blocks.

    Observation: ``"rgb_static"`` ``(200, 200, 3)`` and ``"rgb_gripper"`` ``(84, 84, 3)`` uint8, upright;
    ``"robot_obs"`` ``(15,)`` and ``"scene_obs"`` ``(24,)`` float64 as in the published data set, blocks in the order of
    the scene's YAML file; ``"proprio"`` ``(15,)`` float32, which is ``robot_obs``, and ``"state"`` ``(39,)`` float32,
    both one after the other; ``"instruction"``, a text.

    Action: ``(7,)``. ``"relative"``: displacement of the target pose in units of 0.02 m and 0.05 rad (Euler angles,
    world frame), each in [-1, 1]. ``"absolute"``: pose of the tool centre point in m and rad. The gripper opens above 0
    and closes otherwise. Success never terminates an episode; it is truncated at the horizon. ``reset(seed=s)``
    determines the episode to the bit. The reward is 1 in every step after which the task is solved, else 0.

    Args:
        scene: ``"A"``, ``"B"``, ``"C"`` or ``"D"``.
        task: one of the 34 tasks, judged in every episode, or several, of which each episode draws one; ``reset`` may
            name another. Without one, nothing succeeds.
        action_mode: ``"relative"`` or ``"absolute"``.
        renderer: ``"egl"`` is what the published data were rendered with, ``"tiny"`` the reproducible one on a CPU,
            ``"auto"`` EGL where a child process draws with it, else tiny. The choice is in ``contract.settings``.
        cameras: which of ``"static"`` and ``"gripper"`` are observed, the main one first. Each costs time.
        depth: whether ``"depth_<camera>"`` ``(S, S)`` float32, in metres, is observed for each of them.
        image_size: side of the static camera's frames in pixels; the gripper's are no larger than that, nor than 84.
        render: ``"fast"`` and ``"stock"`` are the same here.
        pixels: whether frames are observed; without them no camera is rendered and EGL not loaded.
        horizon: steps after which an episode is truncated.
        assets: folder of CALVIN's assets; by default where ``CALVIN_ENV_ROOT`` points, else the user's cache.
        backend: ``"latentgym"``, or ``"calvin_env"`` for the original simulator, where it is installed.
        render_mode: ``"rgb_array"`` or ``None``, as in Gymnasium.

    Raises:
        LatentGymError: for a bad option, missing or incomplete assets, or a renderer that does not work.
        MissingExtraError: if PyBullet is not installed.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": int(CONTROL_HZ)}  # noqa: RUF012
    suite: ClassVar[str] = "calvin"

    def __init__(
        self,
        scene: str,
        *,
        task: str | Sequence[str] | None = None,
        action_mode: Literal["relative", "absolute"] = "relative",
        renderer: Literal["auto", "egl", "tiny"] = "auto",
        cameras: Sequence[str] = _CAMERAS,
        depth: bool = False,
        image_size: int = NATIVE_SIZE["static"],
        render: Literal["fast", "stock"] = "fast",
        pixels: bool = True,
        horizon: int = HORIZON,
        assets: str | os.PathLike[str] | None = None,
        backend: Literal["latentgym", "calvin_env"] = "latentgym",
        render_mode: str | None = None,
    ) -> None:
        if not isinstance(cameras, str | list | tuple):
            raise LatentGymError(f"cameras: expected a list of {' and '.join(_CAMERAS)}, found {cameras!r}")
        cameras = tuple([cameras] if isinstance(cameras, str) else cameras) if pixels else ()
        _check_options(cameras, image_size, render, renderer, horizon, action_mode, backend, render_mode)
        self.env_id = f"latentgym/Calvin{scene}-v0"
        self.render_mode = render_mode
        self._cameras, self._depth, self._relative = cameras, depth, action_mode == "relative"
        self._sizes = {"static": image_size, "gripper": min(image_size, NATIVE_SIZE["gripper"])}
        root = find_assets(assets)
        self.scene = load_scene(scene, root)
        self._sentences = instructions(root)
        self._tasks = _checked_tasks(task)
        self.task = self._tasks[0] if len(self._tasks) == 1 else None
        chosen = choose_renderer(renderer) if cameras else None
        self.simulator: Simulator = (
            World(self.scene, root, egl=chosen == "egl", frame_sizes=self._sizes)
            if backend == "latentgym"
            else _original(scene, cameras, chosen)
        )
        self._start: Snapshot | None = None
        self._steps = horizon  # nothing to step before the first reset
        settings = {
            "image_size": image_size,
            "pixels": pixels,
            "cameras": list(cameras),
            "depth": depth,
            "task": task if task is None or isinstance(task, str) else list(task),
            "action_mode": action_mode,
            "horizon": horizon,
            "backend": backend,
        } | ({"renderer": chosen} if chosen is not None else {})
        self.contract = EnvContract(
            env_id=self.env_id,
            suite=self.suite,
            action_spec=ACTION_SPECS[action_mode],
            cameras=tuple(f"rgb_{camera}" for camera in cameras),
            control_hz=CONTROL_HZ,
            horizon=horizon,
            instruction=self.instruction,
            settings=settings,
        )
        spec = self.contract.action_spec
        self.action_space = spaces.Box(
            np.array(spec.low, np.float32), np.array(spec.high, np.float32), dtype=np.float32
        )
        self.observation_space: spaces.Space[Any] = self._observation_space()

    def _observation_space(self) -> spaces.Dict:
        found: dict[str, spaces.Space[Any]] = {}
        for camera in self._cameras:
            size = self._sizes[camera]
            found[f"rgb_{camera}"] = spaces.Box(0, 255, (size, size, 3), np.uint8)
            if self._depth:
                found[f"depth_{camera}"] = spaces.Box(0, np.inf, (size, size), np.float32)
        vectors = {"robot_obs": ROBOT_OBS_SIZE, "scene_obs": SCENE_OBS_SIZE}
        found |= {name: spaces.Box(-np.inf, np.inf, (size,), np.float64) for name, size in vectors.items()}
        floats = {"proprio": ROBOT_OBS_SIZE, "state": ROBOT_OBS_SIZE + SCENE_OBS_SIZE}
        found |= {name: spaces.Box(-np.inf, np.inf, (size,), np.float32) for name, size in floats.items()}
        found["instruction"] = spaces.Text(_LONGEST_INSTRUCTION, min_length=0, charset=string.printable)
        return spaces.Dict(found)

    @property
    def instruction(self) -> str:
        """The current task's sentence in the official evaluation; its name in words if the assets hold no sentences."""
        if self.task is None:
            return ""
        return self._sentences.get(self.task, [self.task.replace("_", " ")])[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: determines the episode fully; not needed where ``options`` give the state.
            options: ``"task"``: name of the task to judge in this episode, or ``None``. ``"robot_obs"`` ``(15,)`` and
                ``"scene_obs"`` ``(24,)``: the state to start from; they come back changed by up to 3e-3, since the
                simulator takes one step, and the gripper's command, last of ``robot_obs``, as open. Where they are left
                out, the robot is at rest, and the scene is drawn such that the task can be done (tasks of placing and
                stacking begin with a lifted block in the hand) or, without a task, with doors closed, lights off and
                blocks anywhere.

        Raises:
            LatentGymError: if an option is unknown or has a bad value.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        for name in options:
            if name not in _RESET_OPTIONS:
                raise UnknownNameError(f"reset option of {self.env_id}", name, _RESET_OPTIONS)
        robot_obs = _checked_vector("robot_obs", options.get("robot_obs"), ROBOT_OBS_SIZE, self.env_id)
        scene_obs = _checked_vector("scene_obs", options.get("scene_obs"), SCENE_OBS_SIZE, self.env_id)
        task = options["task"] if "task" in options else self._draw_task()
        if task is not None and _checked_task(task) and scene_obs is None:
            self._reset_for(task, robot_obs)
        else:
            self.simulator.reset(self.np_random, robot_obs, scene_obs)
        return self.start_task(task), {"is_success": False}

    def _draw_task(self) -> str | None:
        """One of the environment's own tasks."""
        if len(self._tasks) < 2:
            return self._tasks[0] if self._tasks else None
        return self._tasks[int(self.np_random.integers(len(self._tasks)))]

    def _reset_for(self, task: str, robot_obs: NDArray[np.float64] | None) -> None:
        """Bring the simulator into a random state in which ``task`` can be done, a block in the hand where need be."""
        from latentgym.envs.calvin.experts import take_in_hand  # it plans with this module's names

        for _ in range(_GRASP_ATTEMPTS):
            start = draw_start(self.np_random, self.scene, task)
            self.simulator.reset(self.np_random, robot_obs, start.scene_obs)
            if start.grasp is None or take_in_hand(self, start.grasp):
                return
        raise LatentGymError(
            f"{self.env_id}: no block could be grasped in {_GRASP_ATTEMPTS} attempts, as {task!r} needs; give another "
            "robot_obs, or none"
        )

    def start_task(self, task: str | None) -> Observation:
        """Give an instruction from here on, as the next one of a chain: success is judged against the present state.

        Args:
            task: one of the 34 tasks, or ``None``.

        Returns:
            The observation, with the new instruction.

        Raises:
            UnknownNameError: if there is no such task.
        """
        self.task = None if task is None else _checked_task(task)
        self.contract = dataclasses.replace(self.contract, instruction=self.instruction)
        self._start = self.simulator.snapshot()
        self._steps = 0
        return self._observe()

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Execute one action ``(7,)`` for 1/30 s.

        Raises:
            LatentGymError: if the action has the wrong shape, is not finite or leaves the action space, or if the
                episode is over.
        """
        if self._steps >= self.contract.horizon:
            raise LatentGymError(f"{self.env_id}: the episode is over (or never began); call reset first")
        self.simulator.step(checked_action(action, self.contract), relative=self._relative)
        self._steps += 1
        success = self.is_solved
        return self._observe(), float(success), False, self._steps >= self.contract.horizon, {"is_success": success}

    @property
    def is_solved(self) -> bool:
        """Whether the task is achieved now, judged from the moment when its instruction was given."""
        if self.task is None or self._start is None:
            return False
        return predicate(self.task)(self._start, self.simulator.snapshot())

    def solved_tasks(self) -> set[str]:
        """All tasks, of the 34, achieved since the instruction was given."""
        if self._start is None:
            return set()
        return solved_tasks(self._start, self.simulator.snapshot())

    def _observe(self) -> Observation:
        observation: Observation = {}
        for camera in self._cameras:
            frame, depth = self.simulator.render(camera)
            observation[f"rgb_{camera}"] = frame
            if self._depth:
                observation[f"depth_{camera}"] = depth
        robot, scene = self.simulator.robot_obs(), self.simulator.scene_obs()
        return observation | {
            "robot_obs": robot,
            "scene_obs": scene,
            "proprio": robot.astype(np.float32),
            "state": np.concatenate([robot, scene]).astype(np.float32),
            "instruction": self.instruction,
        }

    def render(self) -> NDArray[np.uint8] | None:
        """The main camera's frame, also where frames are not observed (by TinyRenderer then)."""
        if self.render_mode != "rgb_array":
            return None
        return self.simulator.render((*self._cameras, "static")[0])[0]

    def make_expert(self) -> Expert:
        """The scripted expert, which does whatever task the environment is at.

        Raises:
            LatentGymError: if actions are absolute.
        """
        from latentgym.envs.calvin.experts import CalvinExpert  # it plans with this module's names

        if not self._relative:
            raise LatentGymError(f"{self.env_id}: the expert acts by relative actions; use action_mode='relative'")
        return CalvinExpert()

    def close(self) -> None:
        """Free the physics client."""
        self.simulator.close()


def _original(scene: str, cameras: Sequence[str], renderer: str | None) -> Simulator:
    from latentgym.envs.calvin.original import OriginalWorld  # imports the original's many dependencies

    return OriginalWorld(scene, cameras, egl=renderer == "egl")


def _checked_task(task: str) -> str:
    predicate(task)
    return task


def _checked_tasks(task: str | Sequence[str] | None) -> tuple[str, ...]:
    if not isinstance(task, str | list | tuple | None):
        raise LatentGymError(f"task: expected the name of a task or a list of them, found {task!r}")
    tasks = () if task is None else (task,) if isinstance(task, str) else tuple(task)
    if task is not None and not tasks:
        raise LatentGymError("task: expected the name of a task or of several, found none; leave it out for no task")
    return tuple(_checked_task(name) for name in tasks)


def _checked_vector(name: str, value: Any, size: int, env_id: str) -> NDArray[np.float64] | None:
    if value is None:
        return None
    try:
        vector = np.array(value, np.float64)
    except (TypeError, ValueError):
        vector = np.zeros(0)
    if vector.shape != (size,) or not np.isfinite(vector).all():
        raise LatentGymError(f"{env_id}: {name} must be {size} finite numbers, found shape {np.shape(value)}")
    return vector


def _check_options(
    cameras: tuple[str, ...],
    image_size: int,
    render: str,
    renderer: str,
    horizon: int,
    action_mode: str,
    backend: str,
    render_mode: str | None,
) -> None:
    choices: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
        "render": (render, ("fast", "stock")),
        "renderer": (renderer, RENDERERS),
        "action_mode": (action_mode, tuple(ACTION_SPECS)),
        "backend": (backend, _BACKENDS),
        "render_mode": (render_mode, (None, "rgb_array")),
        **{f"cameras[{index}]": (camera, _CAMERAS) for index, camera in enumerate(cameras)},
    }
    for name, (value, known) in choices.items():
        if value not in known:
            raise LatentGymError(f"{name}: expected {' or '.join(map(repr, known))}, found {value!r}")
    if len(set(cameras)) != len(cameras):
        raise LatentGymError(f"cameras: each may be named once, found {list(cameras)}")
    for name, number in (("image_size", image_size), ("horizon", horizon)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise LatentGymError(f"{name}: expected a positive integer, found {number!r}")
    if backend == "calvin_env" and image_size != NATIVE_SIZE["static"]:
        raise LatentGymError(f"backend='calvin_env' renders at its own size, image_size={NATIVE_SIZE['static']}")
