"""The tabletop environment: a Gymnasium environment around one MuJoCo scene and one task."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from latentgym.envs.contract import EnvContract, Expert
from latentgym.envs.gl import import_mujoco, make_renderer
from latentgym.envs.tabletop.experts import TabletopExpert
from latentgym.envs.tabletop.scene import MAX_SPEED, TIMESTEP_S, WORKSPACE, SceneSpec, scene_xml
from latentgym.envs.tabletop.tasks import TASKS, Snapshot
from latentgym.envs.wrappers.action_spec import checked_action
from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.trajectories.episode import ActionSpec

CONTROL_HZ = 10.0
_SUBSTEPS = round(1.0 / (CONTROL_HZ * TIMESTEP_S))
_DISTRACTORS = ("none", "static", "moving")
_PATH_SIZE = 8
Observation = dict[str, NDArray[Any]]

ACTION_SPEC = ActionSpec(
    names=("x", "y", "z"),
    frame="world",
    mode="velocity",
    units=("m/s",) * 3,
    scale=(MAX_SPEED,) * 3,
    low=(-1.0,) * 3,
    high=(1.0,) * 3,
    translation=(0, 1, 2),
)


class TabletopEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """A 3-DoF gripper over a table, seen by one fixed camera.

    Observation: ``"pixels"`` ``(H, W, 3)`` uint8, ``"proprio"`` ``(6,)`` float32 (gripper position in m, velocity in
    m/s), ``"state"`` float32 (see the task's ``state_names``). Action: ``(3,)`` float32 in [-1, 1], the gripper's
    velocity in units of 0.6 m/s, held for 0.1 s; values outside are clipped. Success never terminates an episode; it is
    truncated at the horizon. ``reset(seed=s)`` determines the episode to the bit.

    Args:
        task: ``"Reach"``, ``"Push"`` or ``"Intercept"``.
        image_size: side of the frames in pixels.
        render: ``"fast"`` leaves out shadows, reflections, multisampling and fine meshes; ``"stock"`` is
            MuJoCo's default look.
        pixels: whether to render; without, the observation has no ``"pixels"`` and steps are much faster.
        distractor: ``"none"``, ``"static"`` or ``"moving"``: an orange box that touches nothing and does not matter.
        horizon: steps of an episode; the task's default if ``None``.
        render_mode: ``"rgb_array"`` or ``None``, as in Gymnasium.

    Raises:
        LatentGymError: for an unknown task or option, or if frames are wanted and GL cannot be used.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": int(CONTROL_HZ)}  # noqa: RUF012
    suite: ClassVar[str] = "tabletop"

    def __init__(
        self,
        task: str,
        *,
        image_size: int = 64,
        render: Literal["fast", "stock"] = "fast",
        pixels: bool = True,
        distractor: Literal["none", "static", "moving"] = "none",
        horizon: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        _check_options(task, image_size, render, distractor, horizon, render_mode)
        self._mujoco = import_mujoco(pixels=pixels)
        self._task = TASKS[task]()
        self._task_name = task
        self._image_size, self._render_quality, self._pixels = image_size, render, pixels
        self._distractor = distractor
        self._horizon = self._task.horizon if horizon is None else horizon
        self.render_mode = render_mode
        self._build()
        self.contract = EnvContract(
            env_id=f"latentgym/Tabletop{task}-v0",
            suite=self.suite,
            action_spec=ACTION_SPEC,
            cameras=("pixels",) if pixels else (),
            control_hz=CONTROL_HZ,
            horizon=self._horizon,
            instruction=self._task.instruction,
            settings={
                "image_size": image_size,
                "render": render,
                "pixels": pixels,
                "distractor": distractor,
                "horizon": self._horizon,
                "state_names": list(self._task.state_names),
            },
        )
        self._actions = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = self._actions
        self.observation_space: spaces.Space[Any] = self._observation_space()

    def _build(self) -> None:
        mujoco = self._mujoco
        spec = SceneSpec(
            goal=self._task.goal,
            puck_damping=self._task.puck_damping,
            distractor=self._distractor != "none",
            offscreen=self._image_size,
        )
        self._model = mujoco.MjModel.from_xml_string(scene_xml(spec))
        if self._render_quality == "fast":
            quality = self._model.vis.quality
            quality.offsamples, quality.numslices, quality.numstacks, quality.numquads = 0, 12, 6, 1
        self._data = mujoco.MjData(self._model)
        self._renderer: Any = None
        parts = mujoco.mjtState
        self._state_spec = int(
            parts.mjSTATE_TIME
            | parts.mjSTATE_QPOS
            | parts.mjSTATE_QVEL
            | parts.mjSTATE_WARMSTART
            | parts.mjSTATE_CTRL
            | parts.mjSTATE_MOCAP_POS
        )
        self._state_size = mujoco.mj_stateSize(self._model, self._state_spec)
        self._path = np.zeros(_PATH_SIZE)
        self._steps = self._horizon  # nothing to step before the first reset

    def _observation_space(self) -> spaces.Dict:
        size = self._image_size
        frames = {"pixels": spaces.Box(0, 255, (size, size, 3), np.uint8)} if self._pixels else {}
        vectors = {"proprio": 6, "state": len(self._task.state_names)}
        return spaces.Dict(
            frames | {name: spaces.Box(-np.inf, np.inf, (length,), np.float32) for name, length in vectors.items()}
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Place the scene anew; ``seed`` determines the placement, with or without a distractor."""
        super().reset(seed=seed)
        self._mujoco.mj_resetData(self._model, self._data)
        scene = self._task.place(self.np_random)
        self._data.qpos[:3] = scene.gripper
        if self._task.puck_damping is not None:
            self._data.qpos[3:5] = scene.puck
            self._data.qvel[3:5] = scene.puck_velocity
        self._data.mocap_pos[0] = scene.goal
        self._path = self._draw_path()
        self._steps = 0
        self._settle()
        return self._observe(), {"is_success": self._task.success(self.snapshot())}

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Drive the gripper for one control step.

        Raises:
            LatentGymError: if the action has the wrong shape or is not finite, or if the episode is over.
        """
        if self._steps >= self._horizon:
            raise LatentGymError(f"{self.contract.env_id}: the episode is over (or never began); call reset first")
        self._data.ctrl[:] = MAX_SPEED * checked_action(action, self._actions, self.contract.env_id)
        self._mujoco.mj_step(self._model, self._data, _SUBSTEPS)
        self._steps += 1
        self._settle()
        scene = self.snapshot()
        info = {"is_success": self._task.success(scene)}
        return self._observe(), -self._task.distance(scene), False, self._steps >= self._horizon, info

    def snapshot(self) -> Snapshot:
        """The current low-dimensional state."""
        qpos, qvel = self._data.qpos, self._data.qvel
        has_puck = self._task.puck_damping is not None
        puck, puck_velocity = (qpos[3:5].copy(), qvel[3:5].copy()) if has_puck else (np.zeros(2), np.zeros(2))
        return Snapshot(qpos[:3].copy(), qvel[:3].copy(), puck, puck_velocity, self._data.mocap_pos[0].copy())

    def sim_state(self) -> NDArray[np.float64]:
        """``(Q,)`` float64: everything that frames and the rest of the episode depend on."""
        state = np.empty(self._state_size)
        self._mujoco.mj_getState(self._model, self._data, state, self._state_spec)
        return np.concatenate([state, self._path, [float(self._steps)]])

    def set_sim_state(self, state: NDArray[np.float64]) -> Observation:
        """Go back to a state that :meth:`sim_state` gave, and observe it, to the bit.

        Raises:
            LatentGymError: if the state's length is not this scene's.
        """
        expected = self._state_size + _PATH_SIZE + 1
        if np.shape(state) != (expected,):
            raise LatentGymError(
                f"{self.contract.env_id}: expected a simulator state of shape ({expected},), found {np.shape(state)}; "
                "was it recorded with the same distractor option?"
            )
        self._mujoco.mj_setState(self._model, self._data, state[: self._state_size], self._state_spec)
        self._path = np.array(state[self._state_size : -1])
        self._steps = int(state[-1])
        self._settle()
        return self._observe()

    def make_expert(self) -> Expert:
        """The task's scripted expert."""
        return TabletopExpert(self._task_name)

    def render(self) -> NDArray[np.uint8] | None:
        """The current frame ``(H, W, 3)`` uint8, or ``None`` without a render mode."""
        return self._frame() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Free the GL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _draw_path(self) -> NDArray[np.float64]:
        """Centre, amplitude, frequency (rad/s) and phase of the distractor's path, for x and y."""
        if self._distractor == "none":
            return np.zeros(_PATH_SIZE)
        rng = self.np_random
        centre = rng.uniform(-0.2, 0.2, size=2)
        amplitude = rng.uniform(0.08, 0.2, size=2) * (self._distractor == "moving")
        return np.concatenate([centre, amplitude, rng.uniform(1.5, 3.5, size=2), rng.uniform(0, 2 * np.pi, size=2)])

    def _settle(self) -> None:
        """Bring the distractor and all derived poses up to date with the state."""
        if self._distractor != "none":
            centre, amplitude, frequency, phase = self._path.reshape(4, 2)
            place = centre + amplitude * np.sin(frequency * self._data.time + phase)
            self._data.mocap_pos[1, :2] = np.clip(place, WORKSPACE[0][0], WORKSPACE[0][1])
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_camlight(self._model, self._data)

    def _observe(self) -> Observation:
        proprio = np.concatenate([self._data.qpos[:3], self._data.qvel[:3]]).astype(np.float32)
        vectors: Observation = {"proprio": proprio, "state": self._task.state(self.snapshot())}
        return {"pixels": self._frame()} | vectors if self._pixels else vectors

    def _frame(self) -> NDArray[np.uint8]:
        if self._renderer is None:
            self._renderer = make_renderer(self._model, height=self._image_size, width=self._image_size, max_geom=64)
            if self._render_quality == "fast":
                flags = self._mujoco.mjtRndFlag
                self._renderer.scene.flags[[int(flags.mjRND_SHADOW), int(flags.mjRND_REFLECTION)]] = 0
        self._renderer.update_scene(self._data, camera=0)
        frame: NDArray[np.uint8] = self._renderer.render()
        return frame


def _check_options(
    task: str, image_size: int, render: str, distractor: str, horizon: int | None, render_mode: str | None
) -> None:
    if task not in TASKS:
        raise UnknownNameError("tabletop task", task, TASKS)
    if render not in ("fast", "stock"):
        raise LatentGymError(f"render: expected 'fast' or 'stock', found {render!r}")
    if distractor not in _DISTRACTORS:
        raise UnknownNameError("distractor", str(distractor), _DISTRACTORS)
    if render_mode not in (None, "rgb_array"):
        raise LatentGymError(f"render_mode: expected 'rgb_array' or None, found {render_mode!r}")
    for name, value in (("image_size", image_size), ("horizon", 1 if horizon is None else horizon)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise LatentGymError(f"{name}: expected a positive integer, found {value!r}")
