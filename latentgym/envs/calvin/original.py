"""The original simulator, calvin_env, behind our environment: so that anyone can check ours against theirs.

It needs calvin_env (revision 797142c) and what that imports; see the documentation's page on CALVIN. Three shims make
the unedited code run today: ``gym`` stands for Gymnasium while it is imported, the question for its git revision is
answered without asking git, and its configuration is composed here.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import gymnasium.utils.seeding
import numpy as np
from numpy.typing import NDArray

from latentgym.envs.calvin.client import import_pybullet, silenced
from latentgym.envs.calvin.scene_objects import contacts_of
from latentgym.envs.calvin.snapshot import BlockState, Snapshot
from latentgym.errors import LatentGymError, MissingExtraError

REVISION = "797142c588c21e76717268b7b430958dbd13bf48"
_HOW = (
    "the original simulator cannot be imported ({error}); install it as documented under 'The original simulator': "
    "git clone https://github.com/mees/calvin_env, check out 797142c, pip install --no-deps -e calvin_env, and "
    "pip install hydra-core numpy-quaternion gitpython opencv-python"
)


@contextlib.contextmanager
def _gym_is_gymnasium() -> Iterator[None]:
    names = {"gym": gymnasium, "gym.utils": gymnasium.utils, "gym.utils.seeding": gymnasium.utils.seeding}
    kept = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@functools.cache
def _import_original() -> Any:
    try:
        with _gym_is_gymnasium(), silenced():
            import calvin_env.envs.play_table_env as module
    except ImportError as error:
        raise MissingExtraError(_HOW.format(error=error)) from error
    module.get_git_commit_hash = lambda path: REVISION
    return module


def _configuration(root: Path, scene: str) -> Any:
    """The original's configuration, composed as its own entry point would."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    choices = {
        "cameras": "static_and_gripper",
        "env": "play_table_env",
        "scene": f"calvin_scene_{scene}",
        "robot": "panda_longer_finger",
        "use_vr": "false",
        "data_path": "data",
    }
    with hydra.initialize_config_dir(str(root / "conf"), version_base=None):
        return hydra.compose(None, overrides=[f"+{name}={value}" for name, value in choices.items()])


class OriginalWorld:
    """calvin_env's ``PlayTableSimEnv`` with the methods of :class:`~latentgym.envs.calvin.world.World`.

    Several of its calls do not say which physics client they mean, so it must be the first of its process, and the
    only one of its kind.

    Args:
        scene: letter of the scene.
        cameras: which of ``"static"`` and ``"gripper"`` it has.
        egl: whether EGL renders.

    Raises:
        LatentGymError: if another PyBullet client lives in this process.
        MissingExtraError: if calvin_env or something that it needs is not installed.
    """

    def __init__(self, scene: str, cameras: Sequence[str], *, egl: bool) -> None:
        _import_original()
        if import_pybullet().isConnected(0):
            raise LatentGymError(
                "backend='calvin_env' must be the first CALVIN environment of its process: the original does not say "
                "which physics client it means; close the others first, or start a fresh process"
            )
        import hydra

        config = _configuration(Path(sys.modules["calvin_env"].__file__ or "").parents[1], scene)
        config.env.cameras = {name: config.cameras[name] for name in config.cameras if name in cameras}
        with silenced():
            self._env = hydra.utils.instantiate(config.env, seed=0, use_egl=egl, use_scene_info=True)
        self._after_loading = copy.deepcopy(self._env.np_random)

    def reset(
        self,
        rng: np.random.Generator,
        robot_obs: NDArray[np.float64] | None = None,
        scene_obs: NDArray[np.float64] | None = None,
    ) -> None:
        """Load the world and bring it into a state, blocks placed by ``rng`` where ``scene_obs`` does not.

        Where it does, they are loaded where its own generator puts them the second time, in every reset: the places
        leave a trace of 1e-10 in what follows, which contacts magnify.
        """
        env = self._env
        if scene_obs is not None:
            rng = copy.deepcopy(self._after_loading)
        env.np_random = env.scene.np_random = rng
        env.load()
        for camera in env.cameras:
            camera.robot_uid = env.robot.robot_uid
        env.robot.gripper_action = 1
        env.scene.reset(scene_obs)
        env.robot.reset(robot_obs)
        env.p.stepSimulation(physicsClientId=env.cid)

    def step(self, action: NDArray[np.floating[Any]], *, relative: bool = True) -> None:
        """One control step, without rendering."""
        action = np.array(action)
        action[6] = 1 if action[6] > 0 else -1
        self._env.robot.apply_action(action if relative else (action[:3], action[3:6], action[6:]))
        for _ in range(self._env.action_repeat):
            self._env.p.stepSimulation(physicsClientId=self._env.cid)
        self._env.scene.step()

    def robot_obs(self) -> NDArray[np.float64]:
        """``(15,)``."""
        observation: NDArray[np.float64] = self._env.robot.get_observation()[0]
        return observation

    def scene_obs(self) -> NDArray[np.float64]:
        """``(24,)``."""
        observation: NDArray[np.float64] = self._env.scene.get_obs()
        return observation

    def snapshot(self) -> Snapshot:
        """The original's ``get_info``, as our task oracle reads it."""
        info = self._env.get_info()
        robot, scene = info["robot_info"], info["scene_info"]
        table = scene["fixed_objects"]["table"]
        return Snapshot(
            robot=robot["uid"],
            table=table["uid"],
            table_links=table["links"],
            robot_touches=frozenset(contact.body for contact in contacts_of(robot["contacts"])),
            blocks={
                name: BlockState(
                    block["uid"],
                    block["current_pos"],
                    block["current_orn"],
                    block["current_lin_vel"],
                    block["current_ang_vel"],
                    contacts_of(block["contacts"]),
                )
                for name, block in scene["movable_objects"].items()
            },
            doors={name: door["current_state"] for name, door in scene["doors"].items()},
            lights={name: bool(light["logical_state"]) for name, light in scene["lights"].items()},
        )

    def target_pose(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position (m) and Euler angles (rad) of the robot's target."""
        return np.array(self._env.robot.target_pos), np.array(self._env.robot.target_orn)

    def link_box(self, link: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest corner ``(3,)`` in metres of the box around one link of the table."""
        (table,) = self._env.scene.fixed_objects
        low, high = self._env.p.getAABB(table.uid, table.info_dict["links"][link], physicsClientId=self._env.cid)
        return np.array(low), np.array(high)

    def render(self, camera: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Frame and depth of one camera.

        Raises:
            LatentGymError: if it was made without that camera.
        """
        for each in self._env.cameras:
            if each.name == camera:
                frame, depth = each.render()
                return np.ascontiguousarray(frame, np.uint8), depth
        raise LatentGymError(f"backend='calvin_env' was made without the camera {camera!r}; use pixels=True")

    def close(self) -> None:
        """Disconnect it, once."""
        if self._env.ownsPhysicsClient:
            with silenced():
                self._env.close()
            self._env.ownsPhysicsClient = False  # its destructor would try again, and complain
