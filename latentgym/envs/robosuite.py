"""robosuite's single-arm tasks (Zhu et al., 2020, arXiv 2009.12293; version 1.5) under the environment contract.

The adapter works on robosuite's raw environment, because its own Gymnasium wrapper ignores the seed, reports the
horizon as termination, leaves the info empty and returns frames upside down. Here ``reset(seed=s)`` seeds the
environment's generator and those of all its placement samplers, which makes episodes bitwise equal in used and fresh
environments. Object sizes, which robosuite draws when it builds a model, are those of one fixed model.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.envs.contract import EnvContract, Expert
from latentgym.envs.experts import LiftExpert
from latentgym.envs.gl import import_mujoco
from latentgym.envs.mujoco_task import FreeCamera, MujocoTask, Render, Scene, check_view, merge_options
from latentgym.errors import LatentGymError, UnknownNameError, require
from latentgym.trajectories.episode import ActionSpec

_CONTROL_HZ = 20
_DEFAULT_HORIZON = 200
_VISUAL_GROUP = 1
_HIDDEN_GROUP = 5
_MODEL_SEED = 0
_FIRST_NEAR_LINK = 5  # links 0 to 4 are out of the near camera's sight

#: Control steps after which an episode is truncated, for tasks where the time a solution takes is known.
_HORIZONS = {"Lift": 70}

_INSTRUCTIONS = {
    "Lift": "lift the cube",
    "Stack": "stack the red cube on the green cube",
    "Door": "open the door",
    "NutAssembly": "put the nuts on their pegs",
    "NutAssemblySingle": "put a nut on its peg",
    "NutAssemblySquare": "put the square nut on its peg",
    "NutAssemblyRound": "put the round nut on its peg",
    "PickPlace": "put the objects into their bins",
    "PickPlaceSingle": "put an object into its bin",
    "PickPlaceMilk": "put the milk into its bin",
    "PickPlaceBread": "put the bread into its bin",
    "PickPlaceCereal": "put the cereal into its bin",
    "PickPlaceCan": "put the can into its bin",
    "Wipe": "wipe the table",
    "ToolHang": "hang the tool on the frame",
}

_NEAR_CAMERA = FreeCamera(lookat=(0.0, 0.0, 0.9), distance=0.72, azimuth=150.0, elevation=-38.0)
_NEAR_CAMERA_TASKS = frozenset({"Lift", "Stack"})

_ACTIONS = ActionSpec(
    names=("x", "y", "z", "rx", "ry", "rz", "gripper"),
    frame="world",
    mode="delta",
    units=("m", "m", "m", "rad", "rad", "rad", "1"),
    scale=(0.05, 0.05, 0.05, 0.5, 0.5, 0.5, 1.0),
    low=(-1.0,) * 7,
    high=(1.0,) * 7,
    translation=(0, 1, 2),
    rotation=(3, 4, 5),
    gripper=(6,),
    gripper_close_sign=1,
)


def robosuite_tasks() -> tuple[str, ...]:
    """Names of the adapted tasks, such as ``"Lift"``: those with one arm."""
    return tuple(_INSTRUCTIONS)


def make_robosuite(
    env_id: str, *, image_size: int = 64, render: Render = "fast", pixels: bool = True, **options: Any
) -> RobosuiteEnv:
    """Make ``robosuite/<Task>-v0``, for example ``robosuite/Lift-v0``, with a Panda arm under OSC_POSE control.

    Args:
        env_id: the task's id.
        image_size: height and width of the frames, in pixels.
        render: ``"fast"`` switches multisampling, shadows and reflections off, draws the arm's links from their
            collision meshes, and looks at Lift and Stack from a near free camera; ``"stock"`` is robosuite's look
            from its camera ``agentview``.
        pixels: whether frames are observed.
        **options: ``horizon`` in control steps (default 70 for Lift, else 200); ``cameras``, names of further cameras
            of the model such as ``"robot0_eye_in_hand"``, observed as ``"pixels_<camera>"``.

    Raises:
        LatentGymError: if the task or an option is unknown.
        MissingExtraError: if robosuite is not installed.
    """
    task = env_id.removeprefix("robosuite/").removesuffix("-v0")
    if task not in _INSTRUCTIONS or env_id != f"robosuite/{task}-v0":
        raise UnknownNameError("environment", env_id, (f"robosuite/{name}-v0" for name in _INSTRUCTIONS))
    check_view(env_id, image_size, render)
    defaults = {"horizon": _HORIZONS.get(task, _DEFAULT_HORIZON), "cameras": ()}
    settings = merge_options(env_id, options, defaults)
    return RobosuiteEnv(task, image_size=image_size, render=render, pixels=pixels, **settings)


@functools.cache
def _import_robosuite() -> Any:
    """robosuite, without the warnings that it prints on import and at every construction."""
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    return require("robosuite", "robosuite")


class RobosuiteEnv(MujocoTask):
    """One robosuite task; see :func:`make_robosuite`.

    ``"proprio"`` is the gripper site's position (3, m), the first two columns of its rotation matrix (6, free of
    quaternion sign flips) and the two finger positions (2, m). ``"state"`` adds robosuite's ``object-state`` (poses of
    the objects, and their positions relative to the gripper). The reward is robosuite's shaped one.

    Actions are OSC_POSE deltas in the axes of the robot's base, which are the world's, measured from the *current*
    pose: the arm undershoots them. Rotations are axis-angle. A gripper action of +1 closes.
    """

    def __init__(
        self,
        task: str,
        *,
        image_size: int,
        render: Render,
        pixels: bool,
        horizon: int,
        cameras: tuple[str, ...] | list[str],
    ) -> None:
        import_mujoco(pixels=pixels)
        self.task_name = task
        self._task = self._build(task)
        self._sensors: dict[str, NDArray[np.float64]] = self._task.reset()
        if render == "fast":
            self._lighten_the_arm()
        near = render == "fast" and task in _NEAR_CAMERA_TASKS
        keys = ("pixels", *(f"pixels_{name}" for name in cameras)) if pixels else ()
        contract = EnvContract(
            env_id=f"robosuite/{task}-v0",
            suite="robosuite",
            action_spec=_ACTIONS,
            cameras=keys,
            control_hz=float(_CONTROL_HZ),
            horizon=horizon,
            instruction=_INSTRUCTIONS[task],
            settings={"image_size": image_size, "render": render, "horizon": horizon},
        )
        main: FreeCamera | str = _NEAR_CAMERA if near else "agentview"
        scene = Scene(
            cameras={"pixels": main} | {f"pixels_{name}": name for name in cameras},
            geom_groups=(_VISUAL_GROUP,),
            sites=False,
        )
        super().__init__(contract, scene, image_size=image_size, render=render)

    def make_expert(self) -> Expert:
        """The scripted expert of Lift.

        Raises:
            LatentGymError: for every other task; robosuite ships no experts.
        """
        if self.task_name != "Lift":
            raise LatentGymError(f"{self.contract.env_id} has no expert; robosuite/Lift-v0 has one")
        return LiftExpert()

    @staticmethod
    def _build(task: str) -> Any:
        robosuite = _import_robosuite()
        controllers = require("robosuite.controllers", "robosuite")
        config = controllers.load_composite_controller_config(controller="BASIC", robot="Panda")
        config["body_parts"] = {"right": config["body_parts"]["right"]}
        raw = robosuite.make(
            task,
            robots="Panda",
            controller_configs=config,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            renderer="mujoco",
            control_freq=_CONTROL_HZ,
            hard_reset=False,
            ignore_done=True,
            reward_shaping=True,
            seed=_MODEL_SEED,
        )
        update = raw._update_observables
        # Sensors are read once per observation, not at each of the 25 simulator steps between two.
        raw._update_observables = lambda force=False: update(force=True) if force else None
        return raw

    def _lighten_the_arm(self) -> None:
        """Draw each link of the arm by its collision mesh of a few hundred faces in place of over ten thousand."""
        model, _ = self._simulation()
        near = self.task_name in _NEAR_CAMERA_TASKS
        for index in range(model.ngeom):
            body = model.body(model.geom_bodyid[index]).name
            link = body.removeprefix("robot0_link")
            if link == body:
                if near and body.startswith("fixed_mount0"):
                    model.geom_group[index] = _HIDDEN_GROUP
            elif model.geom_group[index] == _VISUAL_GROUP:
                model.geom_group[index] = _HIDDEN_GROUP
            elif not near or int(link) >= _FIRST_NEAR_LINK:
                model.geom_group[index] = _VISUAL_GROUP
                model.geom_rgba[index] = (0.85, 0.85, 0.85, 1.0)

    def _simulation(self) -> tuple[Any, Any]:
        sim = self._task.sim
        return sim.model._model, sim.data._data

    def _begin(self, rng: np.random.Generator) -> bool:
        self._task.rng = rng
        sampler = self._task.placement_initializer
        for each in (sampler, *getattr(sampler, "samplers", {}).values()):
            each.rng = rng
        self._sensors = self._task.reset()
        return bool(self._task._check_success())

    def _advance(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        _, reward, _, _ = self._task.step(action.astype(np.float64))
        model, data = self._simulation()
        # robosuite ends a step with integration: bring the poses that sensors, success and frames see up to date.
        self._mujoco.mj_kinematics(model, data)
        self._mujoco.mj_comPos(model, data)
        self._mujoco.mj_camlight(model, data)
        self._sensors = self._task._get_observations(force_update=True)
        return float(reward), bool(self._task._check_success())

    def _proprio(self) -> NDArray[np.float32]:
        _, data = self._simulation()
        rotation = data.site_xmat[self._task.robots[0].eef_site_id["right"]].reshape(3, 3)
        position, fingers = self._sensors["robot0_eef_pos"], self._sensors["robot0_gripper_qpos"]
        parts = (position, rotation[:, 0], rotation[:, 1], fingers)
        return np.asarray(np.concatenate(parts), np.float32)

    def _state(self) -> NDArray[np.float32]:
        objects = self._sensors.get("object-state", np.empty(0))
        return np.concatenate([self._proprio(), objects]).astype(np.float32)
