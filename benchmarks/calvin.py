"""Ours beside the original CALVIN simulator: is it the same, and how fast is it?

``python benchmarks/calvin.py`` compares and times all four scenes and prints JSON; ``--experts 24`` adds the scripted
experts' success in every task. The original (calvin_env) is left out where it cannot be imported; the floor is
PyBullet's own steps and frames without anything around them. Each scene runs in a process of its own, ours and the
original side by side in it, since the original must be the first PyBullet client of its process. Assets are looked up
as always (``CALVIN_ENV_ROOT``); the reader's benchmark is ``benchmarks/trajectories/test_calvin.py``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from latentgym.envs import make_env, make_expert
from latentgym.envs.calvin import TASKS
from latentgym.errors import MissingExtraError
from latentgym.statistics import wilson_interval

STEPS = 240
FRAME_EVERY = 24
CONTACT_TASKS = {"A": "open_drawer", "B": "move_slider_left", "C": "turn_on_lightbulb", "D": "lift_red_block_table"}


def actions_of(scene: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A start state, and an expert's actions in contact followed by random ones."""
    env = make_env(f"latentgym/Calvin{scene}-v0", pixels=False, task=CONTACT_TASKS[scene])
    observation, _ = env.reset(seed=11)
    start = {"robot_obs": observation["robot_obs"], "scene_obs": observation["scene_obs"]}
    start["scene_obs"] = np.where(np.arange(24) < 4, np.round(start["scene_obs"], 3), start["scene_obs"])
    observation, _ = env.reset(seed=11, options={**start, "task": CONTACT_TASKS[scene]})
    expert = make_expert(env)
    expert.reset(env, np.random.default_rng(0))
    actions = []
    for _ in range(STEPS // 2):
        actions.append(expert.act(env, observation))
        observation = env.step(actions[-1])[0]
    env.close()
    free = np.random.default_rng(1).uniform(-1, 1, (STEPS - len(actions), 7)).astype(np.float32)
    return start, np.concatenate([np.array(actions, np.float32), free])


def compare(scene: str, renderer: str) -> dict[str, Any]:
    """Largest differences over one run, and speeds; the original's only where it can be imported."""
    options: dict[str, Any] = {"renderer": renderer, "horizon": 10**6}
    report: dict[str, Any] = {"scene": scene, "renderer": renderer}
    try:
        original = make_env(f"latentgym/Calvin{scene}-v0", backend="calvin_env", **options)
    except MissingExtraError as error:
        original, report["original"] = None, str(error)
    ours = make_env(f"latentgym/Calvin{scene}-v0", **options)
    start, actions = actions_of(scene)
    if original is not None:
        report["differences"] = differences(original, ours, start, actions)
    report["steps_per_s"], report["frames_per_s"] = speeds(ours, original, start, actions)
    return report


def differences(original: Any, ours: Any, start: dict[str, np.ndarray], actions: np.ndarray) -> dict[str, Any]:
    """Maximum absolute difference of each observation; of frames also the share of values that differ."""
    worst = {"robot_obs": 0.0, "scene_obs": 0.0, "rgb_static": 0.0, "rgb_gripper": 0.0}
    simulators = [env.unwrapped.simulator for env in (original, ours)]
    for simulator in simulators:
        simulator.reset(np.random.default_rng(0), start["robot_obs"], start["scene_obs"])
    frames = 0
    for step, action in enumerate(actions):
        for simulator in simulators:
            simulator.step(action)
        for name in ("robot_obs", "scene_obs"):
            a, b = (getattr(simulator, name)() for simulator in simulators)
            worst[name] = max(worst[name], float(np.abs(a - b).max()))
        if step % FRAME_EVERY == 0:
            frames += 1
            for camera in ("static", "gripper"):
                a, b = (simulator.render(camera)[0].astype(int) for simulator in simulators)
                worst[f"rgb_{camera}"] = max(worst[f"rgb_{camera}"], float(np.abs(a - b).max()))
    return {**worst, "steps": len(actions), "frames_per_camera": frames}


def speeds(
    ours: Any, original: Any, start: dict[str, np.ndarray], actions: np.ndarray
) -> tuple[dict[str, float], dict[str, float]]:
    """Control steps per second without cameras, and whole observations (both cameras) per second."""
    world = ours.unwrapped.simulator
    world.reset(np.random.default_rng(0), start["robot_obs"], start["scene_obs"])

    def bare_step(_: np.ndarray) -> None:
        for _ in range(8):
            world.client.stepSimulation()

    cameras, robot = world._cameras, world.robot.uid
    bare_views = [
        {"width": side, "height": side, "viewMatrix": view, "projectionMatrix": cameras._projections[name]}
        for name, side, view in (("static", 200, cameras._static_view), ("gripper", 84, cameras._gripper_view(robot)))
    ]

    def bare_frames(_: np.ndarray) -> None:
        with world.client.drawing():
            for view in bare_views:
                world.client.getCameraImage(**view)

    def frames_of(simulator: Any) -> Callable[[np.ndarray], None]:
        def render(_: np.ndarray) -> None:
            for camera in ("static", "gripper"):
                simulator.render(camera)

        return render

    simulators = {"ours": world} | ({} if original is None else {"original": original.unwrapped.simulator})
    steps = {"PyBullet alone": rate(bare_step, actions)}
    frames = {"PyBullet alone": rate(bare_frames, actions[:20])}
    for name, simulator in simulators.items():
        simulator.reset(np.random.default_rng(0), start["robot_obs"], start["scene_obs"])

        def observed(action: np.ndarray, simulator: Any = simulator) -> None:
            simulator.step(action)
            simulator.robot_obs(), simulator.scene_obs()

        steps[name] = rate(observed, actions)
        frames[name] = rate(frames_of(simulator), actions[:20])
    return steps, frames


def rate(call: Callable[[np.ndarray], None], actions: np.ndarray, repeats: int = 3) -> float:
    """Calls per second of process time, the best of several rounds."""
    best = 0.0
    for _ in range(repeats):
        began = time.process_time()
        for action in actions:
            call(action)
        best = max(best, len(actions) / (time.process_time() - began))
    return round(best, 1)


def expert_rates(trials: int) -> list[dict[str, Any]]:
    """Success of the scripted experts in every task: seeds 0 to ``trials`` - 1, scenes A to D in turn."""
    envs = [make_env(f"latentgym/Calvin{scene}-v0", pixels=False) for scene in "ABCD"]
    found = []
    for task in TASKS:
        failures = [seed for seed in range(trials) if not solves(envs[seed % 4], task, seed)]
        successes = trials - len(failures)
        low, high = wilson_interval(successes, trials)
        found.append(
            {"task": task, "successes": successes, "trials": trials, "low": low, "high": high, "failures": failures}
        )
        print(f"{task}: {successes}/{trials}, failed seeds {failures}", file=sys.stderr, flush=True)
    return found


def solves(env: Any, task: str, seed: int) -> bool:
    observation, _ = env.reset(seed=seed, options={"task": task})
    expert = make_expert(env)
    expert.reset(env, np.random.default_rng(seed))
    for _ in range(360):
        observation, _, _, _, info = env.step(expert.act(env, observation))
        if info["is_success"]:
            return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", default="ABCD")
    parser.add_argument("--renderer", default="tiny", choices=["tiny", "egl"])
    parser.add_argument("--experts", type=int, default=0, metavar="TRIALS")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print("REPORT" + json.dumps(compare(arguments.scenes, arguments.renderer)), flush=True)
        return
    reports = []
    for scene in arguments.scenes:
        command = [sys.executable, __file__, "--here", "--scenes", scene, "--renderer", arguments.renderer]
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        reports += [json.loads(line[6:]) for line in out.splitlines() if line.startswith("REPORT")]
    result: dict[str, Any] = {"scenes": reports}
    if arguments.experts:
        result["experts"] = expert_rates(arguments.experts)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
