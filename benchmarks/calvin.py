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
    ours.reset(seed=0, options=start)
    report["per_s"] = speeds(ours, original, start, actions)
    return report


def differences(original: Any, ours: Any, start: dict[str, np.ndarray], actions: np.ndarray) -> dict[str, Any]:
    """Maximum absolute difference of each observation; of frames also the share of values that differ."""
    worst = {"robot_obs": 0.0, "scene_obs": 0.0, "rgb_static": 0.0, "rgb_gripper": 0.0}
    simulators = [env.unwrapped.simulator for env in (original, ours)]
    for simulator in simulators:
        reset(simulator, start)
    for camera in ("static", "gripper"):
        simulators[0].render(camera)  # EGL draws the first frame of a window without shadows; ours throws it away
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


def speeds(ours: Any, original: Any, start: dict[str, np.ndarray], actions: np.ndarray) -> dict[str, dict[str, float]]:
    """Per second: control steps without cameras, frame pairs of both cameras, and whole environment steps with both."""
    world = ours.unwrapped.simulator
    floor_step, floor_frames = floor(world, start, actions)
    found = {"steps": {}, "frame pairs": {}, "steps with frames": {}}

    def measure(name: str, world: Any, step: Call, frames: Call, whole: Call) -> None:
        for what, call, count in (
            ("steps", step, STEPS),
            ("frame pairs", frames, 20),
            ("steps with frames", whole, 20),
        ):
            found[what][name] = rate(call, actions[:count], lambda: reset(world, start))

    def both(step: int, action: np.ndarray) -> None:
        floor_step(step, action)
        floor_frames(step, action)

    measure("PyBullet alone", world, floor_step, floor_frames, both)
    measure("ours", world, *calls_of(world), lambda _, action: ours.step(action))
    if original is not None:
        theirs = original.unwrapped.simulator
        measure("original", theirs, *calls_of(theirs), lambda _, action: theirs._env.step(signed(action)))
    return found


Call = Callable[[int, np.ndarray], Any]


def calls_of(world: Any) -> tuple[Call, Call]:
    """One control step with the state observed, and one frame of each camera."""

    def step(_: int, action: np.ndarray) -> None:
        world.step(action)
        world.robot_obs(), world.scene_obs()

    def frames(_: int, __: np.ndarray) -> None:
        for camera in ("static", "gripper"):
            world.render(camera)

    return step, frames


def signed(action: np.ndarray) -> np.ndarray:
    """The gripper's command as the original wants it, exactly -1 or 1."""
    return np.append(action[:6], 1 if action[6] > 0 else -1)


def floor(world: Any, start: dict[str, np.ndarray], actions: np.ndarray) -> tuple[Call, Call]:
    """Bare PyBullet: the same motor commands and substeps, so the same contacts, and the same frames."""
    reset(world, start)
    bullet, client, told = world.client.pybullet, world.client.id, motor_commands(world, actions)
    cameras, robot = world._cameras, world.robot.uid
    views = [
        {"width": side, "height": side, "viewMatrix": view, "projectionMatrix": cameras._projections[name]}
        for name, side, view in (("static", 200, cameras._static_view), ("gripper", 84, cameras._gripper_view(robot)))
    ]

    def step(index: int, _: np.ndarray) -> None:
        for keywords in told[index]:
            bullet.setJointMotorControl2(**keywords)
        for _ in range(8):
            bullet.stepSimulation(physicsClientId=client)

    def frames(_: int, __: np.ndarray) -> None:
        with world.client.drawing():
            for view in views:
                bullet.getCameraImage(**view, flags=bullet.ER_NO_SEGMENTATION_MASK, physicsClientId=client)

    return step, frames


def motor_commands(world: Any, actions: np.ndarray) -> list[list[dict[str, Any]]]:
    """What every step tells the motors."""
    told: list[list[dict[str, Any]]] = []
    command = world.client.setJointMotorControl2
    world.client.setJointMotorControl2 = lambda **keywords: (told[-1].append(keywords), command(**keywords))
    for action in actions:
        told.append([])
        world.step(action)
    world.client.setJointMotorControl2 = command
    return [[{**keywords, "physicsClientId": world.client.id} for keywords in step] for step in told]


def reset(world: Any, start: dict[str, np.ndarray]) -> None:
    world.reset(np.random.default_rng(0), start["robot_obs"], start["scene_obs"])


def rate(call: Call, actions: np.ndarray, before: Callable[[], None], repeats: int = 3) -> float:
    """Calls per second of process time, the best of several rounds from the same start."""
    best = 0.0
    for _ in range(repeats):
        before()
        began = time.process_time()
        for index, action in enumerate(actions):
            call(index, action)
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
