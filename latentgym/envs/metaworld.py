"""Meta-World's 50 manipulation tasks (Yu et al., 2019, arXiv 1910.10897; version 3) under the environment contract.

Three things differ from Meta-World as it comes:

- ``reset(seed=s)`` determines the episode bitwise. The task's random vector (positions of object and goal) is drawn
  from the environment's own generator, then frozen, so that used and fresh environments agree.
- The goal is part of ``"state"``, and the camera is upright.
- One action is held for ``action_repeat`` simulator steps (3 by default). A single one moves the hand by 1 to 3 pixels
  only, too little for an action to be read from two frames.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.envs.contract import EnvContract, Expert
from latentgym.envs.experts import MetaWorldExpert
from latentgym.envs.gl import import_mujoco
from latentgym.envs.mujoco_task import FreeCamera, MujocoTask, Render, Scene, check_view, merge_options
from latentgym.errors import LatentGymError, UnknownNameError, require
from latentgym.trajectories.episode import ActionSpec

_MAX_SIMULATOR_STEPS = 500
_SIMULATOR_HZ = 80.0
_METRES_PER_UNIT = 0.01
_HIDDEN_GROUP = 5
_TABLE_TOP_GEOM_TYPE = 6  # box; the table's mesh and the floor are hidden in the fast look
_HEAVY_WRIST_FACES = 10_000  # the wrist's own mesh is half of the scene's vertices; a cylinder stands in for it

#: Control steps after which the shipped tasks are truncated at ``action_repeat=3``: about twice the expert's time.
_HORIZONS = {"reach-v3": 40, "button-press-v3": 50, "drawer-open-v3": 70}

_NEAR_CAMERA = FreeCamera(lookat=(0.0, 0.68, 0.1), distance=1.05, azimuth=158.0, elevation=-36.0)
_OUT_OF_SIGHT = frozenset(
    {"controller_box", "pedestal_feet", "torso", "pedestal", "head", "screen"}
    | {"right_arm_base_link", "right_l0", "right_l1", "right_l1_2", "right_l2", "right_l3"}
)


def metaworld_tasks() -> tuple[str, ...]:
    """Names of all tasks, such as ``"reach-v3"``.

    Raises:
        MissingExtraError: if Meta-World is not installed.
    """
    return tuple(require("metaworld.env_dict", "metaworld").ALL_V3_ENVIRONMENTS)


def make_metaworld(
    env_id: str, *, image_size: int = 64, render: Render = "fast", pixels: bool = True, **options: Any
) -> MetaWorldEnv:
    """Make ``metaworld/<task>``, for example ``metaworld/drawer-open-v3``.

    Args:
        env_id: the task's id.
        image_size: height and width of the frames, in pixels.
        render: ``"fast"`` is a near free camera without multisampling, shadows, reflections and what it cannot see;
            ``"stock"`` is Meta-World's look from its camera ``corner2``, turned upright.
        pixels: whether frames are observed.
        **options: ``action_repeat`` (default 3); ``horizon`` in control steps (default: Meta-World's 500 simulator
            steps divided by the repeat, or about twice the expert's time on the tasks where that is known);
            ``cameras``, names of further cameras of the model, observed as ``"pixels_<camera>"``.

    Raises:
        LatentGymError: if the task or an option is unknown, or the horizon exceeds 500 simulator steps.
        MissingExtraError: if Meta-World is not installed.
    """
    task = env_id.removeprefix("metaworld/")
    if task not in metaworld_tasks():
        raise UnknownNameError("Meta-World task", task, metaworld_tasks())
    check_view(env_id, image_size, render)
    settings = merge_options(env_id, options, {"action_repeat": 3, "horizon": None, "cameras": ()})
    return MetaWorldEnv(task, image_size=image_size, render=render, pixels=pixels, **settings)


def _horizon(task: str, horizon: int | None, action_repeat: int) -> int:
    longest = _MAX_SIMULATOR_STEPS // action_repeat
    if horizon is None:
        return min(longest, -(-_HORIZONS.get(task, longest) * 3 // action_repeat)) if task in _HORIZONS else longest
    if not 1 <= horizon <= longest:
        raise LatentGymError(
            f"metaworld/{task}: horizon must be from 1 to {longest} ({_MAX_SIMULATOR_STEPS} simulator steps at "
            f"action_repeat={action_repeat}), got {horizon}"
        )
    return horizon


def _action_spec(action_repeat: int) -> ActionSpec:
    metres = _METRES_PER_UNIT * action_repeat
    return ActionSpec(
        names=("x", "y", "z", "gripper"),
        frame="world",
        mode="delta",
        units=("m", "m", "m", "1"),
        scale=(metres, metres, metres, 1.0),
        low=(-1.0,) * 4,
        high=(1.0,) * 4,
        translation=(0, 1, 2),
        gripper=(3,),
        gripper_close_sign=1,
    )


class MetaWorldEnv(MujocoTask):
    """One Meta-World task; see :func:`make_metaworld`.

    ``"proprio"`` is hand position (3, m) and gripper opening (1, from 0 closed to 1 open). ``"state"`` adds positions
    and quaternions of up to two objects (14, zero-padded) and the goal position (3, m). ``is_success`` of a step is
    true if the task was solved after any of its simulator steps; the reward is summed over them.
    """

    def __init__(
        self,
        task: str,
        *,
        image_size: int,
        render: Render,
        pixels: bool,
        action_repeat: int,
        horizon: int | None,
        cameras: tuple[str, ...] | list[str],
    ) -> None:
        horizon = _horizon(task, horizon, action_repeat)
        import_mujoco(pixels=pixels)
        warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high", category=UserWarning)
        self._task = self._build(task)
        self._action_repeat = action_repeat
        self.raw_observation: NDArray[np.float64] = self._task._get_obs()
        if render == "fast":
            self._hide_what_the_camera_misses()
        keys = ("pixels", *(f"pixels_{name}" for name in cameras)) if pixels else ()
        contract = EnvContract(
            env_id=f"metaworld/{task}",
            suite="metaworld",
            action_spec=_action_spec(action_repeat),
            cameras=keys,
            control_hz=_SIMULATOR_HZ / action_repeat,
            horizon=horizon,
            instruction=" ".join(task.split("-")[:-1]),
            settings={"image_size": image_size, "render": render, "action_repeat": action_repeat, "horizon": horizon},
        )
        main: FreeCamera | str = _NEAR_CAMERA if render == "fast" else "corner2"
        scene = Scene(
            cameras={"pixels": main} | {f"pixels_{name}": name for name in cameras},
            upside_down=frozenset({"pixels"} if render == "stock" else ()),
        )
        super().__init__(contract, scene, image_size=image_size, render=render)

    @property
    def task_name(self) -> str:
        """Meta-World's name of the task, such as ``"reach-v3"``."""
        return self.contract.env_id.removeprefix("metaworld/")

    def make_expert(self) -> Expert:
        """Meta-World's scripted policy for the task."""
        return MetaWorldExpert(self.task_name)

    def sim_state(self) -> NDArray[np.float64]:
        """The task's random vector, which places fixed bodies and goal, and the simulator's integration state."""
        return np.concatenate([self._task._last_rand_vec, super().sim_state()])

    def set_sim_state(self, state: NDArray[np.float64]) -> None:
        """Put task and simulator into a state from :meth:`sim_state` of an equal environment.

        Raises:
            LatentGymError: if the state's length is not this model's.
        """
        size = self._task._random_reset_space.low.size
        vector, simulator = state[:size], state[size:]
        if not np.array_equal(vector, self._task._last_rand_vec):
            self._task._last_rand_vec = np.array(vector)
            self._task._freeze_rand_vec = True
            self._task.reset()
        super().set_sim_state(simulator)

    @staticmethod
    def _build(task: str) -> Any:
        """The raw task with an observable goal; what ``set_task`` does, without a pickled task."""
        raw = require("metaworld.env_dict", "metaworld").ALL_V3_ENVIRONMENTS[task]()
        raw._partially_observable = False
        del raw.sawyer_observation_space  # a cached property that depends on the goal's visibility
        raw._set_task_called = True
        raw.seeded_rand_vec = True
        raw.max_path_length = _MAX_SIMULATOR_STEPS + 1
        raw.np_random = np.random.default_rng(0)
        raw._freeze_rand_vec = False
        raw.reset()
        return raw

    def _hide_what_the_camera_misses(self) -> None:
        model = self._task.model
        for index in range(model.ngeom):
            body = model.body(model.geom_bodyid[index]).name
            mesh = model.geom_dataid[index]
            heavy = mesh >= 0 and model.mesh_facenum[mesh] > _HEAVY_WRIST_FACES
            background = body == "world" or (body == "tablelink" and model.geom_type[index] != _TABLE_TOP_GEOM_TYPE)
            if body in _OUT_OF_SIGHT or background or (body == "right_hand" and heavy):
                model.geom_group[index] = _HIDDEN_GROUP

    def _simulation(self) -> tuple[Any, Any]:
        return self._task.model, self._task.data

    def _begin(self, rng: np.random.Generator) -> bool:
        task = self._task
        task.np_random = rng
        task._freeze_rand_vec = False
        task.reset_model()  # draws a random vector that the task accepts
        task._freeze_rand_vec = True
        self.raw_observation, _ = task.reset()
        return False

    def _advance(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        reward, success = 0.0, False
        for _ in range(self._action_repeat):
            self.raw_observation, step_reward, _, _, info = self._task.step(action)
            reward += float(step_reward)
            success = success or bool(info["success"])
        return reward, success

    def _proprio(self) -> NDArray[np.float32]:
        return np.asarray(self.raw_observation[:4], np.float32)

    def _state(self) -> NDArray[np.float32]:
        state: NDArray[np.float32] = np.concatenate(
            [self.raw_observation[:18], self.raw_observation[36:39]], dtype=np.float32
        )
        return state
