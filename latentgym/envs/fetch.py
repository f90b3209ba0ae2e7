"""The Fetch tasks of Gymnasium-Robotics (Plappert et al., 2018, arXiv 1802.09464) under the environment contract.

They are goal environments: beside the suite's observations there are ``"achieved_goal"`` and ``"desired_goal"``, so
that hindsight can relabel them. Three things differ from the tasks as they come: the camera is near enough for small
frames; drawing a frame does not touch the simulation, so that episodes with and without pixels are equal bit for bit;
and the goal belongs to the simulator's state, from which frames can be rendered again.

Other environments of Gymnasium-Robotics (hands, mazes, kitchen, Adroit) go through :mod:`latentgym.envs.generic`.
"""

from __future__ import annotations

import re
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latentgym.envs.contract import EnvContract, Expert
from latentgym.envs.fetch_experts import FETCH_EXPERTS
from latentgym.envs.gl import import_mujoco
from latentgym.envs.mujoco_task import FreeCamera, MujocoTask, Render, Scene, check_view, merge_options
from latentgym.errors import UnknownNameError, require
from latentgym.trajectories.episode import ActionSpec

_CONTROL_HZ = 25.0
_HORIZON = 50
_METRES_PER_UNIT = 0.05
_ID = re.compile(r"Fetch(Reach|Push|Slide|PickAndPlace)(Dense)?-v4")

_INSTRUCTIONS = {
    "Reach": "move the gripper to the red point",
    "Push": "push the block to the red point",
    "Slide": "hit the puck so that it stops at the red point",
    "PickAndPlace": "bring the block to the red point",
}
_NEAR_CAMERA = FreeCamera(lookat=(1.3, 0.75, 0.5), distance=1.15, azimuth=132.0, elevation=-28.0)
_SLIDE_CAMERA = FreeCamera(lookat=(1.45, 0.75, 0.42), distance=1.45, azimuth=132.0, elevation=-32.0)
_STOCK_CAMERA = FreeCamera(lookat=(1.3, 0.75, 0.55), distance=2.5, azimuth=132.0, elevation=-14.0)

_ACTIONS = ActionSpec(
    names=("x", "y", "z", "gripper"),
    frame="world",
    mode="delta",
    units=("m", "m", "m", "1"),
    scale=(_METRES_PER_UNIT, _METRES_PER_UNIT, _METRES_PER_UNIT, 1.0),
    low=(-1.0,) * 4,
    high=(1.0,) * 4,
    translation=(0, 1, 2),
    gripper=(3,),
    gripper_close_sign=-1,
)


def fetch_ids() -> tuple[str, ...]:
    """Ids of the adapted tasks, such as ``"FetchReach-v4"``, with sparse and with dense rewards."""
    return tuple(f"Fetch{task}{reward}-v4" for task in _INSTRUCTIONS for reward in ("", "Dense"))


def make_fetch(
    env_id: str, *, image_size: int = 64, render: Render = "fast", pixels: bool = True, **options: Any
) -> FetchEnv:
    """Make a Fetch task, for example ``FetchPickAndPlace-v4``.

    Args:
        env_id: the task's id.
        image_size: height and width of the frames, in pixels.
        render: ``"fast"`` is a near free camera without multisampling, shadows and reflections; ``"stock"`` is the look
            of Gymnasium-Robotics.
        pixels: whether frames are observed.
        **options: ``horizon`` in control steps (default 50); ``cameras``, names of further cameras of the model, such
            as ``"gripper_camera_rgb"``, observed as ``"pixels_<camera>"``.

    Raises:
        LatentGymError: if the task or an option is unknown.
        MissingExtraError: if Gymnasium-Robotics is not installed.
    """
    match = _ID.fullmatch(env_id)
    if match is None:
        raise UnknownNameError("environment", env_id, fetch_ids())
    check_view(env_id, image_size, render)
    settings = merge_options(env_id, options, {"horizon": _HORIZON, "cameras": ()})
    return FetchEnv(env_id, match[1], image_size=image_size, render=render, pixels=pixels, **settings)


class FetchEnv(MujocoTask):
    """One Fetch task; see :func:`make_fetch`.

    ``"proprio"`` is the gripper's position (3, m) and the two finger positions (2, m). ``"state"`` is the task's own
    observation (10, with an object 25: gripper, object, their relative position, fingers, object's Euler angles, and
    velocities per control step) and the goal (3, m). Success means that the goal is met within 0.05 m *now*; an episode
    goes on afterwards.

    Actions are displacements of the gripper, which keeps its orientation. A gripper action of -1 closes; in Reach, Push
    and Slide the fingers are locked.
    """

    def __init__(
        self,
        env_id: str,
        task: str,
        *,
        image_size: int,
        render: Render,
        pixels: bool,
        horizon: int,
        cameras: tuple[str, ...] | list[str],
    ) -> None:
        import_mujoco(pixels=pixels)
        gymnasium.register_envs(require("gymnasium_robotics", "robotics"))
        self.task_name = task
        self._task: Any = gymnasium.make(env_id, disable_env_checker=True).unwrapped
        self._task.np_random = np.random.default_rng(0)
        self._raw, _ = self._task.reset()
        keys = ("pixels", *(f"pixels_{name}" for name in cameras)) if pixels else ()
        contract = EnvContract(
            env_id=env_id,
            suite="gymnasium-robotics",
            action_spec=_ACTIONS,
            cameras=keys,
            control_hz=_CONTROL_HZ,
            horizon=horizon,
            instruction=_INSTRUCTIONS[task],
            settings={"image_size": image_size, "render": render, "horizon": horizon},
        )
        near = _SLIDE_CAMERA if task == "Slide" else _NEAR_CAMERA
        main = near if render == "fast" else _STOCK_CAMERA
        scene = Scene(cameras={"pixels": main} | {f"pixels_{name}": name for name in cameras})
        super().__init__(contract, scene, image_size=image_size, render=render)
        goals = {name: spaces.Box(-np.inf, np.inf, self._raw[name].shape, np.float64) for name in self._goals()}
        self.observation_space = spaces.Dict({**self.observation_space.spaces, **goals})  # type: ignore[attr-defined]

    def make_expert(self) -> Expert:
        """The scripted expert of the task."""
        return FETCH_EXPERTS[self.task_name]()

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:
        """The task's reward for other goals ``(…, 3)``: for hindsight."""
        return self._task.compute_reward(achieved_goal, desired_goal, info)

    def sim_state(self) -> NDArray[np.float64]:
        """The goal (3, m), and the simulator's integration state."""
        return np.concatenate([self._task.goal, super().sim_state()])

    def set_sim_state(self, state: NDArray[np.float64]) -> None:
        """Put goal and simulator into a state from :meth:`sim_state` of an equal environment.

        Raises:
            LatentGymError: if the state's length is not this model's.
        """
        size = self._task.goal.size
        super().set_sim_state(state[size:])
        self._task.goal = np.array(state[:size])
        self._place_target()

    def _simulation(self) -> tuple[Any, Any]:
        return self._task.model, self._task.data

    def _begin(self, rng: np.random.Generator) -> bool:
        self._task.np_random = rng
        self._raw, _ = self._task.reset()
        self._place_target()
        return bool(self._task._is_success(self._raw["achieved_goal"], self._raw["desired_goal"]))

    def _advance(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        self._raw, reward, _, _, info = self._task.step(action.astype(np.float64))
        self._settle()
        return float(reward), bool(info["is_success"])

    def _place_target(self) -> None:
        """Move the site that shows the goal."""
        model, data = self._simulation()
        site = model.site("target0")
        site.pos[:] = self._task.goal - data.xpos[int(site.bodyid[0])]
        self._settle()

    def _proprio(self) -> NDArray[np.float32]:
        observation = self._raw["observation"]
        fingers = observation[9:11] if self._task.has_object else observation[3:5]
        return np.asarray(np.concatenate([observation[:3], fingers]), np.float32)

    def _state(self) -> NDArray[np.float32]:
        return np.asarray(np.concatenate([self._raw["observation"], self._raw["desired_goal"]]), np.float32)

    def _observe(self) -> dict[str, NDArray[Any]]:
        return super()._observe() | {name: np.array(self._raw[name]) for name in self._goals()}

    @staticmethod
    def _goals() -> tuple[str, str]:
        return "achieved_goal", "desired_goal"
