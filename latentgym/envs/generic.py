"""Any Gymnasium environment that renders RGB frames, under the environment contract.

What such an environment does not state is filled in modestly: ``"proprio"`` and ``"state"`` are both its flattened
observation (empty where it observes images), success comes from the info keys ``is_success`` or ``success`` and is
``False`` where neither exists (never read from ``terminated``), and the action spec holds bounds but no units.
Describe the actions of your own environment with
:class:`latentgym.envs.wrappers.action_spec.ActionSpecWrapper`, or let it state an ``EnvContract`` itself.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from latentgym.envs.contract import EnvContract
from latentgym.envs.gl import choose_gl_backend
from latentgym.envs.mujoco_task import Render, check_view
from latentgym.envs.wrappers.action_spec import action_spec_of, checked_action
from latentgym.envs.wrappers.success import SuccessInfo
from latentgym.errors import LatentGymError, UnknownNameError, require

_DEFAULT_HORIZON = 1000
_DEFAULT_HZ = 30.0
_FRAME_DIMENSIONS = 3
_CHANNELS = 3
_GOALS = ("achieved_goal", "desired_goal")
_ROBOTICS = ("Fetch", "Hand", "PointMaze", "AntMaze", "Adroit", "FrankaKitchen")
_SIZED_RENDERERS = ("gymnasium.envs.mujoco", "gymnasium_robotics.envs")


def make_generic(
    env_id: str, *, image_size: int = 64, render: Render = "fast", pixels: bool = True, **options: Any
) -> gymnasium.Env[Any, Any]:
    """Make any registered Gymnasium id, such as ``"Reacher-v5"``.

    Args:
        env_id: the id, or ``module:id`` to import a module that registers it.
        image_size: height and width of the frames, in pixels; rendered frames are cropped to their central square and
            resized with antialiasing.
        render: ``"fast"`` switches shadows, reflections and multisampling of MuJoCo models off; ``"stock"`` does not.
        pixels: whether frames are observed.
        **options: ``horizon`` in steps (default: the id's own limit, or 1000); the rest goes to ``gymnasium.make``.

    Raises:
        LatentGymError: if the id is unknown, cannot be made, renders no RGB frames, or has other than bounded
            continuous actions.
    """
    check_view(env_id, image_size, render)
    choose_gl_backend(pixels=False)  # not every environment needs GL; those that do fail at the first frame
    horizon = options.pop("horizon", None)
    if horizon is not None and (isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1):
        raise LatentGymError(f"{env_id}: horizon must be a positive integer, got {horizon!r}")
    env = _make(env_id, image_size, horizon, options)
    if isinstance(getattr(env.unwrapped, "contract", None), EnvContract):
        return env  # it keeps the suite's contract by itself, and knows its frames and its horizon
    kind = GenericGoalEnv if _goals_of(env.observation_space) else GenericEnv
    return kind(env, env_id=env_id, image_size=image_size, render=render, pixels=pixels)


def _make(env_id: str, image_size: int, horizon: int | None, options: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    if env_id.startswith(_ROBOTICS) and env_id not in gymnasium.registry:
        gymnasium.register_envs(require("gymnasium_robotics", "robotics"))
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        spec = gymnasium.spec(name)
    except ImportError as error:
        raise LatentGymError(f"{env_id}: module {module!r} cannot be imported ({error})") from error
    except gymnasium.error.Error as error:
        raise UnknownNameError("environment", env_id, gymnasium.registry, f"({error})") from error
    if str(spec.entry_point).startswith(_SIZED_RENDERERS):
        options = {"width": image_size, "height": image_size} | options
    limit = horizon or spec.max_episode_steps or _DEFAULT_HORIZON
    try:
        env: gymnasium.Env[Any, Any] = gymnasium.make(name, render_mode="rgb_array", max_episode_steps=limit, **options)
        return env
    except LatentGymError:
        raise
    except Exception as error:  # constructors of third parties raise anything
        raise LatentGymError(f"{env_id} cannot be made with render_mode='rgb_array' and {options}: {error}") from error


def square_frame(frame: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The central square of ``frame`` ``(H, W, 3)``, resized to ``(size, size, 3)`` with antialiasing."""
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(frame[top : top + side, left : left + side])
    if side == size:
        return square
    image = torch.from_numpy(square).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(image, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


class GenericEnv(gymnasium.Env[Any, Any]):
    """A Gymnasium environment with the suite's observations and contract; see :func:`make_generic`."""

    def __init__(
        self, env: gymnasium.Env[Any, Any], *, env_id: str, image_size: int, render: Render, pixels: bool
    ) -> None:
        self._env = SuccessInfo(env)
        self._image_size = image_size
        action_spec = action_spec_of(env.action_space, env_id)
        rate = float(env.metadata.get("render_fps") or _DEFAULT_HZ)
        horizon = env.spec.max_episode_steps if env.spec is not None else None
        self.contract = EnvContract(
            env_id=env_id,
            suite="gymnasium",
            action_spec=action_spec,
            cameras=("pixels",) if pixels else (),
            control_hz=rate,
            horizon=horizon or _DEFAULT_HORIZON,
            settings={"image_size": image_size, "render": render, "horizon": horizon or _DEFAULT_HORIZON},
        )
        self.render_mode = "rgb_array"
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": max(1, round(rate))}
        self._actions = spaces.Box(
            np.array(action_spec.low, np.float32), np.array(action_spec.high, np.float32), dtype=np.float32
        )
        self.action_space = self._actions
        self._vector_size = _vector_size(env.observation_space)
        vector = spaces.Box(-np.inf, np.inf, (self._vector_size,), np.float32)
        frame = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self._goals = _goals_of(env.observation_space)
        self.observation_space = spaces.Dict(
            {camera: frame for camera in self.contract.cameras} | {"proprio": vector, "state": vector} | self._goals
        )
        self._settle_mujoco(render)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        observation, info = self._env.reset(seed=seed, options=options)
        return self._observe(observation), {"is_success": info["is_success"]}

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """Execute one action ``(A,)``.

        Raises:
            LatentGymError: if the action is not finite or of the wrong shape.
        """
        action = checked_action(action, self._actions, self.contract.env_id)
        inner = self._env.action_space
        assert isinstance(inner, spaces.Box)
        # A bound that single precision rounds outwards is passed in double precision.
        action = np.clip(action.astype(inner.dtype), inner.low, inner.high)
        observation, reward, terminated, truncated, info = self._env.step(action)
        success = {"is_success": info["is_success"]}
        return self._observe(observation), float(reward), bool(terminated), bool(truncated), success

    def render(self) -> NDArray[np.uint8]:
        """The frame ``(H, W, 3)`` uint8.

        Raises:
            LatentGymError: if the environment renders no RGB frame.
        """
        try:
            frame: Any = self._env.render()
        except Exception as error:  # GL and third-party renderers raise anything
            raise LatentGymError(f"{self.contract.env_id} cannot render a frame: {error}") from error
        shape = getattr(frame, "shape", None)
        if shape is None or len(shape) != _FRAME_DIMENSIONS or shape[2] != _CHANNELS or frame.dtype != np.uint8:
            raise LatentGymError(
                f"{self.contract.env_id}: render() must give an (H, W, 3) uint8 array, found {frame!r}"
            )
        return square_frame(frame, self._image_size)

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def sim_state(self) -> NDArray[np.float64]:
        """Empty: the simulator's state of an arbitrary environment is unknown."""
        return np.empty(0)

    def _observe(self, observation: Any) -> dict[str, NDArray[Any]]:
        vector = np.empty(0, np.float32)
        if self._vector_size:
            vector = spaces.flatten(self._env.observation_space, observation).astype(np.float32)  # type: ignore[union-attr]
        frames: dict[str, NDArray[Any]] = {camera: self.render() for camera in self.contract.cameras}
        goals = {key: np.array(observation[key]) for key in self._goals}
        return frames | {"proprio": vector, "state": vector.copy()} | goals

    def _settle_mujoco(self, render: Render) -> None:
        """Give a MuJoCo environment a camera that does not depend on its first episode, and the fast look."""
        task: Any = self._env.unwrapped
        # Mazes hold an environment of the robot, which simulates and renders for them.
        inner = task if hasattr(task, "mujoco_renderer") else getattr(task, "ant_env", getattr(task, "point_env", None))
        model, viewer = getattr(inner, "model", None), getattr(inner, "mujoco_renderer", None)
        if model is None or viewer is None:
            return
        # Gymnasium points a free camera at the median geom of the first state rendered.
        view = {"lookat": np.array(model.stat.center)} | (viewer.default_cam_config or {})
        if inner is not task:  # the robot's own distance may show none of the maze
            view["distance"] = max(view.get("distance", 0.0), float(model.stat.extent))
        viewer.default_cam_config = view
        if render == "fast":
            model.vis.quality.offsamples = 0
            model.light_castshadow[:] = 0
            model.mat_reflectance[:] = 0


class GenericGoalEnv(GenericEnv):
    """One with ``"achieved_goal"`` and ``"desired_goal"``; learners tell it from others by ``compute_reward``."""

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:
        """The reward of a goal environment, for relabelled goals.

        Raises:
            AttributeError: if the environment computes none.
        """
        return self._env.get_wrapper_attr("compute_reward")(achieved_goal, desired_goal, info)


def _goals_of(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    """The goals that an environment observes, under their keys."""
    known = space.spaces if isinstance(space, spaces.Dict) else {}
    return {key: known[key] for key in _GOALS if isinstance(known.get(key), spaces.Box)}


def _vector_size(space: spaces.Space[Any]) -> int:
    """Length of the flattened observation, 0 for images and for spaces of no fixed length."""
    if isinstance(space, spaces.Box) and len(space.shape) >= _FRAME_DIMENSIONS:
        return 0
    try:
        return math.prod(spaces.flatten_space(space).shape or (0,))
    except (NotImplementedError, TypeError, ValueError):
        return 0
