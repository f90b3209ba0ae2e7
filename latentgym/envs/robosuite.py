"""robosuite's tasks (Zhu et al., 2020, arXiv 2009.12293; version 1.5) under the environment contract.

The adapter works on robosuite's raw environment, because its own Gymnasium wrapper ignores the seed, reports the
horizon as termination, leaves the info empty and returns frames upside down. Here ``reset(seed=s)`` seeds the
environment's generator and those of all its placement samplers, which makes episodes bitwise equal in used and fresh
environments, and in processes of another hash seed. Object sizes, which robosuite draws when it builds a model, are
those of one fixed model.
"""

from __future__ import annotations

import functools
import logging
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.envs.contract import EnvContract, Expert
from latentgym.envs.gl import import_mujoco
from latentgym.envs.mujoco_task import FreeCamera, MujocoTask, Render, Scene, check_view, merge_options
from latentgym.envs.robosuite_experts import ROBOSUITE_EXPERTS
from latentgym.errors import LatentGymError, UnknownNameError, require
from latentgym.trajectories.episode import ActionSpec

_CONTROL_HZ = 20
_DEFAULT_HORIZON = 200
_VISUAL_GROUP = 1
_HIDDEN_GROUP = 5
_MODEL_SEED = 0
_FIRST_NEAR_LINK = 5  # links 0 to 4 are out of the near camera's sight

#: Control steps after which an episode is truncated, for tasks where the time a solution takes is known.
_HORIZONS = {"Lift": 70, "NutAssembly": 350}

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
    "TwoArmLift": "lift the pot with both arms",
    "TwoArmPegInHole": "put the peg into the hole",
    "TwoArmHandover": "hand the hammer over to the other arm",
    "TwoArmTransport": "put the hammer into the other bin and the trash into the trash bin",
}

# robosuite draws which object is asked for from a Python set, whose order differs from process to process.
_DRAWN_OBJECT = {"NutAssemblySingle": ("nut_id", 2), "PickPlaceSingle": ("object_id", 4)}

_CUBES_CAMERA = FreeCamera(lookat=(0.0, 0.0, 0.9), distance=0.72, azimuth=150.0, elevation=-38.0)
_DOOR_CAMERA = FreeCamera(lookat=(-0.12, -0.22, 1.06), distance=0.75, azimuth=225.0, elevation=-25.0)
_PEGS_CAMERA = FreeCamera(lookat=(0.06, 0.02, 0.88), distance=0.85, azimuth=180.0, elevation=-38.0)
_BINS_CAMERA = FreeCamera(lookat=(0.1, 0.02, 0.85), distance=1.15, azimuth=180.0, elevation=-48.0)
_CLOSE_UP_TASKS = frozenset({"Lift", "Stack"})  # whose camera sees little of the arm

_ARM = ("x", "y", "z", "rx", "ry", "rz")


def _action_spec(grippers: list[bool]) -> ActionSpec:
    """One OSC_POSE block per robot, and one number per gripper; with several robots, names say whose they are."""
    names: list[str] = []
    for robot, gripper in enumerate(grippers):
        prefix = f"robot{robot}_" if len(grippers) > 1 else ""
        names += [prefix + name for name in (*_ARM, *(["gripper"] if gripper else []))]
    kinds = [name.rpartition("_")[2] for name in names]
    units = {"x": "m", "y": "m", "z": "m", "rx": "rad", "ry": "rad", "rz": "rad", "gripper": "1"}
    scales = {"m": 0.05, "rad": 0.5, "1": 1.0}
    return ActionSpec(
        names=tuple(names),
        frame="world",
        mode="delta",
        units=tuple(units[kind] for kind in kinds),
        scale=tuple(scales[units[kind]] for kind in kinds),
        low=(-1.0,) * len(names),
        high=(1.0,) * len(names),
        translation=tuple(index for index, kind in enumerate(kinds) if units[kind] == "m"),
        rotation=tuple(index for index, kind in enumerate(kinds) if units[kind] == "rad"),
        gripper=tuple(index for index, kind in enumerate(kinds) if kind == "gripper"),
        gripper_close_sign=1 if any(grippers) else 0,
    )


def _near_camera(task: str) -> FreeCamera | str:
    for words, camera in (
        (("Lift", "Stack"), _CUBES_CAMERA),
        (("Door",), _DOOR_CAMERA),
        (("NutAssembly",), _PEGS_CAMERA),
        (("PickPlace",), _BINS_CAMERA),
    ):
        if task.startswith(words):
            return camera
    return "agentview"


def _has_fingers(robot: Any) -> bool:
    return bool(robot.has_gripper["right"] and robot.gripper["right"].dof)


def robosuite_tasks() -> tuple[str, ...]:
    """Names of the tasks, such as ``"Lift"``."""
    return tuple(_INSTRUCTIONS)


def make_robosuite(
    env_id: str, *, image_size: int = 64, render: Render = "fast", pixels: bool = True, **options: Any
) -> RobosuiteEnv:
    """Make ``robosuite/<Task>-v0``, for example ``robosuite/Lift-v0``, with Panda arms under OSC_POSE control.

    Args:
        env_id: the task's id.
        image_size: height and width of the frames, in pixels.
        render: ``"fast"`` switches multisampling, shadows and reflections off, draws the arm's links from their
            collision meshes, and looks from a free camera that is near enough for small frames at the tasks with cubes,
            pegs, bins or a door; ``"stock"`` is robosuite's look from its camera ``agentview``.
        pixels: whether frames are observed.
        **options: ``horizon`` in control steps (default 70 for Lift, 350 for NutAssembly, else 200); ``cameras``, names
            of further cameras of the model such as ``"robot0_eye_in_hand"``, observed as ``"pixels_<camera>"``.

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

    ``"proprio"`` is, for each robot, the gripper site's position (3, m), the first two columns of its rotation matrix
    (6, free of quaternion sign flips) and, where it has fingers, their positions (2, m). ``"state"`` adds robosuite's
    ``object-state`` (poses of the objects, and their positions relative to the gripper). The reward is robosuite's
    shaped one; TwoArmTransport and ToolHang have a sparse one only.

    Actions are OSC_POSE deltas in the world's axes, measured from the *current* pose: the arm undershoots them.
    Rotations are axis-angle. A gripper action of +1 closes. Wipe and TwoArmPegInHole have no fingers to close.
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
        self._sensors: dict[str, NDArray[np.float64]] = {}
        self._task.reset()
        self._read_sensors()
        self._drawn = self._drawn_per_episode()
        if render == "fast":
            self._lighten_the_arms()
        keys = ("pixels", *(f"pixels_{name}" for name in cameras)) if pixels else ()
        contract = EnvContract(
            env_id=f"robosuite/{task}-v0",
            suite="robosuite",
            action_spec=_action_spec([_has_fingers(robot) for robot in self._task.robots]),
            cameras=keys,
            control_hz=float(_CONTROL_HZ),
            horizon=horizon,
            instruction=_INSTRUCTIONS[task],
            settings={"image_size": image_size, "render": render, "horizon": horizon},
        )
        main = _near_camera(task) if render == "fast" else "agentview"
        scene = Scene(
            cameras={"pixels": main} | {f"pixels_{name}": name for name in cameras},
            geom_groups=(_VISUAL_GROUP,),
            sites=False,
        )
        super().__init__(contract, scene, image_size=image_size, render=render)

    def make_expert(self) -> Expert:
        """The task's scripted expert.

        Raises:
            LatentGymError: if it has none; robosuite ships no experts.
        """
        if self.task_name not in ROBOSUITE_EXPERTS:
            raise LatentGymError(
                f"{self.contract.env_id} has no expert; these tasks have one: {', '.join(ROBOSUITE_EXPERTS)}"
            )
        return ROBOSUITE_EXPERTS[self.task_name]()

    @staticmethod
    def _build(task: str) -> Any:
        robosuite = _import_robosuite()
        controllers = require("robosuite.controllers", "robosuite")
        config = controllers.load_composite_controller_config(controller="BASIC", robot="Panda")
        config["body_parts"] = {"right": config["body_parts"]["right"]}
        robots = ["Panda"]
        if task.startswith("TwoArm"):
            robots *= 2
            config["body_parts"]["right"]["input_ref_frame"] = "world"  # their bases are turned
        raw = robosuite.make(
            task,
            robots=robots,
            controller_configs=config,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            renderer="mujoco",
            control_freq=_CONTROL_HZ,
            hard_reset=False,
            ignore_done=True,
            reward_shaping=task != "TwoArmTransport",  # which has no shaped reward
            seed=_MODEL_SEED,
        )
        update = raw._update_observables
        # Sensors are read once per observation, not at each of the 25 simulator steps between two.
        raw._update_observables = lambda force=False: update(force=True) if force else None
        return raw

    def _lighten_the_arms(self) -> None:
        """Draw each link of the arms by its collision mesh of a few hundred faces in place of over ten thousand."""
        model, _ = self._simulation()
        close_up = self.task_name in _CLOSE_UP_TASKS
        for index in range(model.ngeom):
            body = model.body(model.geom_bodyid[index]).name
            link = re.fullmatch(r"robot\d+_link(\d+)", body)
            if link is None:
                if close_up and body.startswith("fixed_mount0"):
                    model.geom_group[index] = _HIDDEN_GROUP
            elif model.geom_group[index] == _VISUAL_GROUP:
                model.geom_group[index] = _HIDDEN_GROUP
            elif not close_up or int(link[1]) >= _FIRST_NEAR_LINK:
                model.geom_group[index] = _VISUAL_GROUP
                model.geom_rgba[index] = (0.85, 0.85, 0.85, 1.0)

    def _simulation(self) -> tuple[Any, Any]:
        sim = self._task.sim
        return sim.model._model, sim.data._data

    def _drawn_per_episode(self) -> list[tuple[NDArray[Any], Any]]:
        """What a reset writes into the model, as arrays and their indices: the simulator's state does not hold it."""
        model, task = self._simulation()[0], self._task
        bodies: list[int] = []
        geoms: list[int] = []
        if self.task_name == "Door":
            bodies = [model.body(task.door.root_body).id]
        elif self.task_name == "Wipe":
            markers = task.model.mujoco_arena.markers
            bodies = [model.body(marker.root_body).id for marker in markers]
            geoms = [model.geom(marker.visual_geoms[0]).id for marker in markers]  # a wiped one is invisible
        places = [(model.body_pos, bodies), (model.body_quat, bodies), (model.geom_rgba, geoms)]
        return [(array, index) for array, index in places if index]

    def sim_state(self) -> NDArray[np.float64]:
        """The simulator's integration state and, before it, what a reset places in the model."""
        drawn = [array[index].ravel() for array, index in self._drawn]
        return np.concatenate([*drawn, super().sim_state()])

    def set_sim_state(self, state: NDArray[np.float64]) -> None:
        """Put model and simulator into a state from :meth:`sim_state` of an equal environment.

        Raises:
            LatentGymError: if the state's length is not this model's.
        """
        size = sum(array[index].size for array, index in self._drawn)
        values = state[:size]
        if len(values) == size:
            for array, index in self._drawn:
                count = array[index].size
                array[index] = values[:count].reshape(array[index].shape)
                values = values[count:]
        super().set_sim_state(state[size:])

    def _begin(self, rng: np.random.Generator) -> bool:
        self._task.rng = rng
        for sampler in self._samplers():
            sampler.rng = rng
        if self.task_name in _DRAWN_OBJECT:
            name, count = _DRAWN_OBJECT[self.task_name]
            self._task.single_object_mode = 2  # that object, in place of one drawn by robosuite
            setattr(self._task, name, int(rng.integers(count)))
        self._task.reset()
        self._read_sensors()
        return bool(self._task._check_success())

    def _samplers(self) -> list[Any]:
        """Everything that draws at a reset: placement samplers, Wipe's arena, and the hammer, which may be flipped."""
        sampler = getattr(self._task, "placement_initializer", None)
        placements = [] if sampler is None else [sampler, *getattr(sampler, "samplers", {}).values()]
        model = self._task.model
        return [*placements, *(each for each in (model.mujoco_arena, *model.mujoco_objects) if hasattr(each, "rng"))]

    def _advance(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        _, reward, _, _ = self._task.step(action.astype(np.float64))
        self._settle()
        self._read_sensors()
        return float(reward), bool(self._task._check_success())

    def _read_sensors(self) -> None:
        """Bring the sensors up to date, twice: poses relative to the gripper are made of the pose read before."""
        self._task._update_observables(force=True)
        self._sensors = self._task._get_observations(force_update=True)

    def _proprio(self) -> NDArray[np.float32]:
        _, data = self._simulation()
        parts: list[NDArray[np.float64]] = []
        for number, robot in enumerate(self._task.robots):
            rotation = data.site_xmat[robot.eef_site_id["right"]].reshape(3, 3)
            fingers = self._sensors.get(f"robot{number}_gripper_qpos", np.empty(0))
            parts += [self._sensors[f"robot{number}_eef_pos"], rotation[:, 0], rotation[:, 1], fingers]
        return np.asarray(np.concatenate(parts), np.float32)

    def _state(self) -> NDArray[np.float32]:
        objects = self._sensors.get("object-state", np.empty(0))
        return np.concatenate([self._proprio(), objects]).astype(np.float32)
