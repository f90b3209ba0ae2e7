"""What the MuJoCo suites share: a renderer with a fast look, and an environment that keeps the contract.

MuJoCo's stock look is bound by vertices, shadows and multisampling, hardly by resolution. The fast look switches
multisampling, shadows, reflections and the sky off and hides what the camera cannot see; it is recorded in the
contract's settings, since it changes the frames.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latentgym.envs.contract import EnvContract
from latentgym.envs.gl import import_mujoco, make_renderer
from latentgym.envs.wrappers.action_spec import checked_action
from latentgym.errors import LatentGymError, UnknownNameError

Render = Literal["fast", "stock"]


@dataclasses.dataclass(frozen=True)
class FreeCamera:
    """A camera that no model file names.

    Attributes:
        lookat: point in the middle of the frame, in metres.
        distance: from that point, in metres.
        azimuth: in degrees, 0 looks along +x, 90 along +y.
        elevation: in degrees, negative looks down.
    """

    lookat: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """How a model is looked at.

    Attributes:
        cameras: observation key to camera, the main camera first; a string names a camera of the model.
        upside_down: observation keys of cameras that hang upside down in the model; their frames are turned by 180°.
        geom_groups: visible geom groups, or ``None`` for MuJoCo's default (0, 1 and 2).
        sites: whether sites are drawn.
    """

    cameras: Mapping[str, FreeCamera | str]
    upside_down: frozenset[str] = frozenset()
    geom_groups: tuple[int, ...] | None = None
    sites: bool = True


class SceneRenderer:
    """Renders upright RGB frames of one model; the GL context is created at the first frame, in the current process."""

    def __init__(self, model: Any, scene: Scene, *, image_size: int, render: Render) -> None:
        self._mujoco = import_mujoco(pixels=False)
        self._model = model
        self._scene = scene
        self._image_size = image_size
        self._render = render
        self._renderer: Any = None
        self._cameras = {key: self._camera(camera) for key, camera in scene.cameras.items()}
        self._option = self._mujoco.MjvOption()
        if scene.geom_groups is not None:
            self._option.geomgroup[:] = [group in scene.geom_groups for group in range(len(self._option.geomgroup))]
        if not scene.sites:
            self._option.sitegroup[:] = 0

    def frame(self, data: Any, key: str) -> NDArray[np.uint8]:
        """The frame ``(H, W, 3)`` of one camera.

        Raises:
            LatentGymError: if no GL context can be created.
        """
        if self._renderer is None:
            self._renderer = self._open()
        self._renderer.update_scene(data, self._cameras[key], self._option)
        frame: NDArray[np.uint8] = self._renderer.render()
        return np.ascontiguousarray(frame[::-1, ::-1]) if key in self._scene.upside_down else frame

    def close(self) -> None:
        """Free the GL context; the next frame creates another."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _open(self) -> Any:
        if self._render == "fast":
            self._model.vis.quality.offsamples = 0  # read when the context is created
        renderer = make_renderer(self._model, height=self._image_size, width=self._image_size)
        if self._render == "fast":
            flags = self._mujoco.mjtRndFlag
            for flag in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION, flags.mjRND_SKYBOX):
                renderer.scene.flags[flag] = 0
        return renderer

    def _camera(self, camera: FreeCamera | str) -> Any:
        if isinstance(camera, str):
            names = [self._model.camera(index).name for index in range(self._model.ncam)]
            if camera not in names:
                raise UnknownNameError("camera", camera, names)
            return camera
        free = self._mujoco.MjvCamera()
        free.lookat[:] = camera.lookat
        free.distance, free.azimuth, free.elevation = camera.distance, camera.azimuth, camera.elevation
        return free


def merge_options(env_id: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``defaults`` updated by ``options``.

    Raises:
        LatentGymError: if an option is unknown, a count (an integer default, or ``horizon``) is no positive integer, or
            ``cameras`` are no names.
    """
    for name, value in options.items():
        if name not in defaults:
            raise UnknownNameError(f"option of {env_id}", name, defaults)
        counts = isinstance(defaults[name], int) or name == "horizon"
        if counts and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise LatentGymError(f"{env_id}: {name} must be a positive integer, got {value!r}")
    merged = {**defaults, **options}
    cameras = merged.get("cameras", ())
    if isinstance(cameras, str):
        return merged | {"cameras": (cameras,)}
    if not isinstance(cameras, list | tuple) or not all(isinstance(camera, str) for camera in cameras):
        raise LatentGymError(f"{env_id}: cameras must be a list of names, got {cameras!r}")
    return merged


def check_view(env_id: str, image_size: int, render: str) -> None:
    """Check the arguments that every environment takes.

    Raises:
        LatentGymError: if ``image_size`` is no integer from 16 to 1024, or ``render`` is neither fast nor stock.
    """
    if isinstance(image_size, bool) or not isinstance(image_size, int) or not 16 <= image_size <= 1024:
        raise LatentGymError(f"{env_id}: image_size must be an integer from 16 to 1024, got {image_size!r}")
    if render not in ("fast", "stock"):
        raise LatentGymError(f"{env_id}: render must be 'fast' or 'stock', got {render!r}")


class MujocoTask(gymnasium.Env[Any, Any], abc.ABC):
    """An environment of the suite on a MuJoCo model: seeding, observations, truncation, success and simulator state.

    Episodes are never terminated, and truncated at the contract's horizon. Actions are clipped to the action space.

    Args:
        contract: what the environment states of itself; its cameras are the observed ones.
        scene: how the model is looked at.
        image_size: height and width of a frame, in pixels.
        render: ``"fast"`` or ``"stock"``.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(self, contract: EnvContract, scene: Scene, *, image_size: int, render: Render) -> None:
        self.contract = contract
        self.render_mode = "rgb_array"
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": max(1, round(contract.control_hz))}
        self._mujoco = import_mujoco(pixels=bool(contract.cameras))
        self._main_camera = next(iter(scene.cameras))
        model, _ = self._simulation()
        self._scene_renderer = SceneRenderer(model, scene, image_size=image_size, render=render)
        self._elapsed_steps = contract.horizon  # nothing to step before the first reset
        spec = contract.action_spec
        self._actions = spaces.Box(np.array(spec.low, np.float32), np.array(spec.high, np.float32), dtype=np.float32)
        self.action_space = self._actions
        frame = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        vectors = {"proprio": self._proprio(), "state": self._state()}
        self.observation_space = spaces.Dict(
            {camera: frame for camera in contract.cameras}
            | {name: spaces.Box(-np.inf, np.inf, value.shape, np.float32) for name, value in vectors.items()}
        )

    @abc.abstractmethod
    def _simulation(self) -> tuple[Any, Any]:
        """The current ``(MjModel, MjData)``."""

    @abc.abstractmethod
    def _begin(self, rng: np.random.Generator) -> bool:
        """Start an episode that ``rng`` determines; return whether the task is already solved."""

    @abc.abstractmethod
    def _advance(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        """Execute one action; return reward and success."""

    @abc.abstractmethod
    def _proprio(self) -> NDArray[np.float32]:
        """What the robot knows of itself, ``(P,)``."""

    @abc.abstractmethod
    def _state(self) -> NDArray[np.float32]:
        """The privileged state, ``(S,)``."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Start an episode; ``seed`` determines it fully, whatever was played before."""
        super().reset(seed=seed)
        solved = self._begin(self.np_random)
        self._elapsed_steps = 0
        return self._observe(), {"is_success": solved}

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """Execute one action ``(A,)``.

        Raises:
            LatentGymError: if the action is not finite or of the wrong shape, or if the episode is over.
        """
        if self._elapsed_steps >= self.contract.horizon:
            raise LatentGymError(f"{self.contract.env_id}: the episode is over (or never began); call reset first")
        reward, success = self._advance(checked_action(action, self._actions, self.contract.env_id))
        self._elapsed_steps += 1
        truncated = self._elapsed_steps >= self.contract.horizon
        return self._observe(), reward, False, truncated, {"is_success": success}

    def render(self) -> NDArray[np.uint8]:
        """The main camera's frame ``(H, W, 3)`` uint8, also where frames are not observed."""
        _, data = self._simulation()
        return self._scene_renderer.frame(data, self._main_camera)

    def sim_state(self) -> NDArray[np.float64]:
        """The simulator's integration state ``(Q,)`` (``mjSTATE_INTEGRATION``)."""
        model, data = self._simulation()
        signature = self._mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(self._mujoco.mj_stateSize(model, signature))
        self._mujoco.mj_getState(model, data, state, signature)
        return state

    def set_sim_state(self, state: NDArray[np.float64]) -> None:
        """Put the simulator into a state from :meth:`sim_state` of an equal environment, to render it again.

        Controllers keep what they had: go on from here by ``reset``, not by ``step``.

        Raises:
            LatentGymError: if the state's length is not this model's.
        """
        model, data = self._simulation()
        signature = self._mujoco.mjtState.mjSTATE_INTEGRATION
        size = self._mujoco.mj_stateSize(model, signature)
        if state.shape != (size,):
            raise LatentGymError(
                f"{self.contract.env_id}: a simulator state has shape ({size},), found {state.shape}; "
                "was it recorded with the same environment and library versions?"
            )
        whole = np.ascontiguousarray(state, np.float64)
        self._mujoco.mj_setState(model, data, whole, signature)
        self._mujoco.mj_forward(model, data)
        self._mujoco.mj_setState(model, data, whole, signature)  # the solver has replaced its warm start

    def close(self) -> None:
        """Free the GL context."""
        self._scene_renderer.close()

    def _settle(self) -> None:
        """Bring the poses that frames, sensors and success see up to date where a step ends with integration."""
        model, data = self._simulation()
        self._mujoco.mj_kinematics(model, data)
        self._mujoco.mj_comPos(model, data)
        self._mujoco.mj_camlight(model, data)

    def _observe(self) -> dict[str, NDArray[Any]]:
        _, data = self._simulation()
        frames: dict[str, NDArray[Any]] = {
            camera: self._scene_renderer.frame(data, camera) for camera in self.contract.cameras
        }
        return frames | {"proprio": self._proprio(), "state": self._state()}
