"""Which renderer draws, what it draws, and that worlds in one process or in several do not disturb each other."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from latentgym.envs import make_env
from latentgym.envs.calvin import rendering
from latentgym.envs.contract import contract_of
from latentgym.envs.recording import record
from latentgym.errors import LatentGymError

needs_egl = pytest.mark.skipif("error" in rendering.probe_egl(), reason="PyBullet's EGL plugin does not draw here")


def test_auto_takes_egl_only_where_a_child_process_drew_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "probe_egl", lambda: {"vendor": "v", "renderer": "r", "version": "1"})
    assert [rendering.choose_renderer(name) for name in ("auto", "egl", "tiny")] == ["egl", "egl", "tiny"]
    monkeypatch.setattr(rendering, "probe_egl", lambda: {"error": "status -11"})
    assert [rendering.choose_renderer(name) for name in ("auto", "tiny")] == ["tiny", "tiny"]
    with pytest.raises(LatentGymError, match=r"status -11.*renderer='tiny'"):
        rendering.choose_renderer("egl")
    with pytest.raises(LatentGymError, match="expected 'auto', 'egl' or 'tiny'"):
        rendering.choose_renderer("vulkan")


@pytest.mark.parametrize("ending", ["import os; os.abort()", "raise SystemExit(1)", "print('nothing')"])
def test_a_driver_that_takes_its_process_down_is_survived(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_PROBE", ending)
    assert "error" in rendering.probe_egl.__wrapped__()


def test_the_choice_is_in_provenance(shared: Path, tmp_path: Path) -> None:
    options = {"assets": str(shared / "calvin_assets"), "task": "turn_on_led", "horizon": 3, "cameras": ["static"]}
    for renderer, image_size in (("tiny", 16), ("auto", 16)):
        dataset = record("latentgym/CalvinD-v0", tmp_path / renderer, episodes=1, image_size=image_size,
                         env_options={**options, "renderer": renderer})  # fmt: skip
        chosen = dataset.settings["renderer"]
        assert chosen == rendering.choose_renderer(renderer)
        assert dataset.provenance.gl["backend"] == f"pybullet-{chosen}"
        assert chosen == "tiny" or {"vendor", "renderer", "version"} <= dataset.provenance.gl.keys()


@needs_egl
@pytest.mark.slow
@pytest.mark.parametrize("run", ["contact", "free"])
def test_frames_of_egl_equal_the_original(shared: Path, run: str) -> None:
    """Only the first frame of the recording's process differs: EGL draws the first of a window without shadows."""
    golden = np.load(shared / "calvin_golden.npz")
    env = make_env("latentgym/CalvinD-v0", assets=shared / "calvin_assets", renderer="egl")
    if not rendering.probe_egl()["renderer"].startswith("llvmpipe"):
        pytest.skip("the reference was drawn by llvmpipe")
    env.unwrapped._cameras, cameras = (), env.unwrapped._cameras
    env.reset(seed=0, options={"robot_obs": golden["init_robot_obs"], "scene_obs": golden["init_scene_obs"]})
    for row, (start, stop) in enumerate(zip(golden["frame_steps"], golden["frame_steps"][1:], strict=False), start=1):
        for step in range(start, stop):
            env.step(golden[f"{run}_rel_actions"][step])
        for camera in cameras:
            frame, depth = env.unwrapped.simulator.render(camera)
            difference = np.abs(frame.astype(int) - golden[f"{run}_egl_rgb_{camera}"][row])
            assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
            np.testing.assert_allclose(depth, golden[f"{run}_egl_depth_{camera}"][row], atol=1e-3)
    env.close()


def frames_of(assets: Path, scene: str, renderer: str) -> list[np.ndarray]:
    env = make_env(f"latentgym/Calvin{scene}-v0", assets=assets, renderer=renderer, image_size=32, task="turn_on_led")
    found = [env.reset(seed=5)[0]["rgb_static"]]
    found += [env.step(np.full(7, 0.3, np.float32))[0]["rgb_static"] for _ in range(2)]
    env.close()
    return found


@pytest.mark.parametrize("renderer", ["tiny", pytest.param("egl", marks=needs_egl)])
def test_worlds_of_one_process_do_not_disturb_each_other(shared: Path, renderer: str) -> None:
    """Two scenes stepped in turn give what each gives by itself."""
    assets = shared / "calvin_assets"
    alone = [frames_of(assets, scene, renderer) for scene in "AD"]
    envs = [
        make_env(f"latentgym/Calvin{scene}-v0", assets=assets, renderer=renderer, image_size=32, task="turn_on_led")
        for scene in "AD"
    ]
    together = [[env.reset(seed=5)[0]["rgb_static"]] for env in envs]
    for _ in range(2):
        for env, frames in zip(envs, together, strict=True):
            frames.append(env.step(np.full(7, 0.3, np.float32))[0]["rgb_static"])
    for env in envs:
        env.close()
    np.testing.assert_array_equal(together, alone)


@needs_egl
def test_mujoco_beside_it_is_not_disturbed(shared: Path) -> None:
    """PyBullet makes its context current once and never again; MuJoCo must find its own, and the other way round."""
    mujoco = make_env("latentgym/TabletopReach-v0")
    before = mujoco.reset(seed=1)[0]["pixels"]
    alone = frames_of(shared / "calvin_assets", "D", "egl")
    np.testing.assert_array_equal(mujoco.reset(seed=1)[0]["pixels"], before)
    np.testing.assert_array_equal(frames_of(shared / "calvin_assets", "D", "egl"), alone)
    mujoco.close()
    np.testing.assert_array_equal(frames_of(shared / "calvin_assets", "D", "egl"), alone)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vectors_of_gymnasium(shared: Path, mode: str) -> None:
    options = {"assets": str(shared / "calvin_assets"), "renderer": "tiny", "image_size": 32, "task": "turn_on_led"}
    context = {"context": "spawn"} if mode == "async" else {}
    envs = gymnasium.make_vec(
        "latentgym/CalvinD-v0", num_envs=2, vectorization_mode=mode, vector_kwargs=context, **options
    )
    observation, _ = envs.reset(seed=[5, 6])
    assert observation["rgb_static"].shape == (2, 32, 32, 3) and len(observation["instruction"]) == 2
    np.testing.assert_array_equal(observation["rgb_static"][0], frames_of(shared / "calvin_assets", "D", "tiny")[0])
    *_, info = envs.step(np.zeros((2, 7), np.float32))
    assert info["is_success"].tolist() == [False, False]
    envs.close()


def test_other_processes_see_the_same(shared: Path) -> None:
    assets = shared / "calvin_assets"
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        there = list(pool.map(frames_of, [assets] * 2, "AD", ["tiny"] * 2))
    np.testing.assert_array_equal(there, [frames_of(assets, scene, "tiny") for scene in "AD"])


def test_without_frames_nothing_is_drawn(shared: Path) -> None:
    env = make_env("latentgym/CalvinD-v0", assets=shared / "calvin_assets", pixels=False, renderer="egl")
    assert "renderer" not in contract_of(env).settings and contract_of(env).cameras == ()
    assert not [key for key in env.reset(seed=0)[0] if key.startswith("rgb")]
    env.close()
