"""Environment steps per second of evaluation, against the floor and against the usual ways.

    python benchmarks/rollouts/speed.py OUT [--env ID ...] [--encoder random] [--workers 2] [--repeats 3] [--steps 1500]
        [--episodes 60] [--inference auto]

Prints, for each environment, one table with everything from one run, same environment, policy and encoder, batches of
``BENCH_BATCH`` (4) observations:

- floor: CPU-seconds of step + render + encode + head, divided by the number of cores; with an encoder on a GPU the
  larger of step + render, divided by the number of cores, and the time that the GPU is busy with copies and kernels of
  encode + head. Measured in one process that does nothing else, with full batches.
- ours: ``evaluate(..., workers=W)``, after its environments are made; with ``--inference workers`` every worker has a
  copy of the policy, on a GPU too, so that their kernels are launched side by side.
- independent: W processes that each do what the floor was measured on, with no word between them: what this machine
  gives to W busy processes at that moment. Where other jobs run too, it stands for the floor in wall time.
- vector: a loop over Gymnasium's AsyncVectorEnv in batches of episodes, each batch until its longest episode is over.
- World.evaluate of stable-worldmodel, where it is installed.

Episodes end at success, so that their lengths differ. Kinds are measured in turns, several times, and medians are
shown. Steps beyond an episode's end count for nobody. An encoder goes to the GPU where there is one.

On a CPU the ratio to the floor is (CPU-seconds per step of the floor / ours) x (cores kept busy): the share of cores
that ours kept busy is its CPU-seconds per second of wall time, relative to the independent processes', at most 1. On a
machine with nothing else to do this is the ratio of steps per second to ``cores / CPU-seconds per step``. With a GPU it
is the ratio of steps per second.
"""

# ruff: noqa: E402 - the environment is set before libraries read it

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

# One thread per process everywhere; read when the libraries are loaded.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["LP_NUM_THREADS"] = "0"
os.environ.setdefault("MUJOCO_GL", "egl")

import gymnasium
import numpy as np
import torch

from latentgym.encoders import load_encoder
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.envs.make import make_env
from latentgym.envs.recording import record
from latentgym.policies import Policy, load_policy, train_policy
from latentgym.rollouts import evaluate, rollout_seeds
from latentgym.seeding import derive_seed

BATCH = int(os.environ.get("BENCH_BATCH", "4"))


def folder_of(env_id: str, encoder: str, out: Path) -> Path:
    return out / env_id.replace("/", "-") / ("policy" if encoder == "random" else f"policy-{Path(encoder).name}")


def policy_of(env_id: str, encoder: str, out: Path) -> Policy:
    """A policy on the encoder that solves some of the episodes."""
    folder = folder_of(env_id, encoder, out)
    if not folder.is_dir():
        data = record(env_id, folder.with_name(folder.name.replace("policy", "data")), episodes=40, seed=0)
        train_policy(data, load_encoder(encoder), steps=500, seed=0).save(folder)
    return load_policy(folder)


def on_gpu(policy: Any) -> bool:
    return bool(policy.encoder.device.type == "cuda")


def options_of(policy: Any) -> dict[str, Any]:
    return policy.training.env_options()


def run_alone(env_id: str, folder: Path, steps: int, first_seed: int, barrier: Any = None) -> dict[str, float]:
    """Steps, renders, encodes and acts on full batches; CPU-seconds of either side, and wall time."""
    torch.set_num_threads(1)
    policy: Any = load_policy(folder)
    envs = [make_env(env_id, **options_of(policy)) for _ in range(BATCH)]
    policy.bind(envs)
    seeds = iter(rollout_seeds(first_seed, env_id, 100_000))
    observations: list[Any] = [None] * BATCH
    batch: dict[str, Any] = {}
    env_s = policy_s = 0.0
    done, wall = -BATCH, time.perf_counter()
    while done < steps:
        fresh = np.array([observation is None for observation in observations])
        before = time.process_time()
        for row in np.flatnonzero(fresh):
            observations[row] = envs[row].reset(seed=next(seeds))[0]
        middle = time.process_time()
        batch = {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
        if fresh.any():
            policy.reset(fresh, [0] * BATCH)
        actions = policy.act(batch)
        after = time.process_time()
        for row, action in enumerate(actions):
            observation, _, terminated, truncated, info = envs[row].step(action)
            over = terminated or truncated or info["is_success"]
            observations[row] = None if over else observation
        done += BATCH
        if done == 0:  # contexts are made and caches are warm
            if barrier is not None:
                barrier.wait()
            env_s = policy_s = 0.0
            wall = time.perf_counter()
        else:
            env_s += middle - before + time.process_time() - after
            policy_s += after - middle
    wall = time.perf_counter() - wall
    for env in envs:
        env.close()
    gpu_s = done / BATCH * _gpu_busy_s(policy, batch) if on_gpu(policy) else 0.0
    return {"env_s": env_s, "policy_s": policy_s, "gpu_s": gpu_s, "wall_s": wall, "steps": done}


def _gpu_busy_s(policy: Any, batch: dict[str, Any], repeats: int = 20) -> float:
    """Seconds of copies and kernels in one call of the policy, gaps between them left out."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(repeats):
            policy.act(batch)
        torch.cuda.synchronize()
    return 1e-6 * sum(event.self_device_time_total for event in profile.key_averages()) / repeats


def _independent(queue: Any, *arguments: Any) -> None:
    queue.put(run_alone(*arguments))


def run_independent(env_id: str, folder: Path, steps: int, workers: int) -> dict[str, float]:
    context = multiprocessing.get_context("forkserver")
    queue, barrier = context.Queue(), context.Barrier(workers)
    processes = [
        context.Process(target=_independent, args=(queue, env_id, folder, steps // workers, index, barrier))
        for index in range(workers)
    ]
    for process in processes:
        process.start()
    found = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    rate = sum(one["steps"] / one["wall_s"] for one in found)
    cores = sum((one["env_s"] + one["policy_s"]) / one["wall_s"] for one in found)
    return {"steps_per_s": rate, "cores": cores, "cpu_s_per_step": cores / rate}


def run_ours(env_id: str, policy: Policy, episodes: int, workers: int, inference: str) -> dict[str, float]:
    began = time.perf_counter()
    seeds = rollout_seeds(0, env_id, episodes)
    evaluation = evaluate(env_id, policy, seeds, workers=workers, batch_size=BATCH, inference=inference)
    whole = time.perf_counter() - began
    timing = evaluation.timing
    assert timing is not None
    return {
        "steps_per_s": timing.steps_per_s,
        "cores": sum(timing.cpu_s) / timing.wall_s,
        "cpu_s_per_step": sum(timing.cpu_s) / timing.steps,
        "worker_ms": 1e3 * timing.cpu_s[1] / timing.steps,
        "main_ms": 1e3 * timing.cpu_s[0] / timing.steps,
        "fill": timing.steps / (timing.batches * timing.batch_size),
        "startup_s": timing.startup_s,
        "whole_steps_per_s": timing.steps / whole,
        "successes": evaluation.summary.successes,
        "mean_steps": evaluation.summary.mean_steps,
    }


def run_vector(env_id: str, policy: Any, episodes: int, count: int) -> dict[str, float]:
    """Batches of ``count`` episodes, each until its last one is over."""
    make = partial(make_env, env_id, **options_of(policy))
    envs = gymnasium.vector.AsyncVectorEnv([make] * count, context="forkserver")
    seeds = rollout_seeds(0, env_id, episodes)
    policy.bind([make_env(env_id, **{**options_of(policy), "pixels": False})] * count)
    steps, wall_s, main_s = 0, 0.0, 0.0
    for start in range(0, episodes - episodes % count, count):
        began, cpu = time.perf_counter(), time.process_time()
        own = seeds[start : start + count]
        observation, _ = envs.reset(seed=own)
        policy.reset(np.ones(count, np.bool_), [derive_seed(seed, "policy") for seed in own])
        running = np.ones(count, np.bool_)
        while running.any():
            observation, _, terminated, truncated, info = envs.step(policy.act(observation))
            steps += int(running.sum())
            running &= ~(terminated | truncated | np.asarray(info["is_success"]))
        wall_s += time.perf_counter() - began
        main_s += time.process_time() - cpu
    envs.close()
    return {"steps_per_s": steps / wall_s, "main_ms": 1e3 * main_s / steps}


def run_world(env_id: str, policy: Any, episodes: int, count: int) -> dict[str, float]:
    """``World.evaluate``: environments of one process, stepped one after the other."""
    ensure_torchvision()
    from stable_worldmodel import World
    from stable_worldmodel.policy import BasePolicy

    class Bridge(BasePolicy):  # type: ignore[misc]
        steps = 0

        def get_action(self, infos: dict[str, Any], **_: Any) -> Any:
            fresh = np.asarray(infos["step_idx"]).reshape(count) == 0
            if fresh.any():
                policy.reset(fresh, [0] * count)
            self.steps += count
            return policy.act({"pixels": np.asarray(infos["pixels"])[:, 0].astype(np.uint8)})

    class EndAtSuccess(gymnasium.Wrapper):  # type: ignore[type-arg]
        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, info = self.env.step(action)
            return observation, reward, terminated or info["is_success"], truncated, info

    options = options_of(policy)
    if env_id not in gymnasium.registry:
        gymnasium.register(env_id, entry_point="latentgym.envs.make:make_from_spec", kwargs={"env_id": env_id})
    horizon = make_env(env_id, **{**options, "pixels": False}).get_wrapper_attr("contract").horizon
    world = World(
        env_id, count, (64, 64), max_episode_steps=horizon, goal_conditioned=False, pre_wrappers=[EndAtSuccess],
        render_mode="rgb_array", **{**options, "pixels": False},
    )  # fmt: skip
    policy.bind([make_env(env_id, **{**options, "pixels": False})] * count)
    bridge = Bridge()
    world.set_policy(bridge)
    began, cpu = time.perf_counter(), time.process_time()
    world.evaluate(episodes=episodes, seed=0)
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    world.close()
    return {"steps_per_s": bridge.steps / wall_s, "cpu_s_per_step": cpu_s / bridge.steps}


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]} if runs else {}


def compare(env_id: str, arguments: argparse.Namespace) -> dict[str, Any]:
    policy = policy_of(env_id, arguments.encoder, arguments.out)
    folder = folder_of(env_id, arguments.encoder, arguments.out)
    workers, cores = arguments.workers, len(os.sched_getaffinity(0))
    runs: dict[str, list[dict[str, float]]] = {"alone": [], "independent": [], "ours": [], "vector": [], "world": []}
    for repeat in range(arguments.repeats):
        runs["alone"].append(run_alone(env_id, folder, arguments.steps // 2, repeat))
        if not on_gpu(policy):
            runs["independent"].append(run_independent(env_id, folder, arguments.steps, workers))
        runs["ours"].append(run_ours(env_id, policy, arguments.episodes, workers, arguments.inference))
        if not arguments.no_vector:
            with contextlib.suppress(ImportError):
                runs["vector"].append(run_vector(env_id, policy, arguments.episodes, 2 * BATCH))
        if importlib.util.find_spec("stable_worldmodel"):
            runs["world"].append(run_world(env_id, policy, arguments.episodes, 2 * BATCH))
    alone = median(runs["alone"])
    env_ms, policy_ms, gpu_ms = (1e3 * alone[name] / alone["steps"] for name in ("env_s", "policy_s", "gpu_s"))
    floor_ms = max(env_ms / cores, gpu_ms) if on_gpu(policy) else (env_ms + policy_ms) / cores
    shares = {f"wall, ours / {name}": of_each(runs, name) for name in ("independent", "vector", "world") if runs[name]}
    ratios = gpu_ratios(runs, floor_ms) if on_gpu(policy) else cpu_ratios(runs, floor_ms * cores)
    return {
        "env": env_id,
        "encoder": arguments.encoder,
        "cores": cores,
        "workers": workers,
        "batch_size": BATCH,
        "inference": arguments.inference,
        "alone_ms": {"step + render": env_ms, "encode + head": policy_ms, "encode + head on the GPU": gpu_ms},
        "floor_steps_per_s": 1e3 / floor_ms,
        "independent": median(runs["independent"]),
        "ours": median(runs["ours"]),
        "vector": median(runs["vector"]),
        "world": median(runs["world"]),
        "ratio": {**ratios, **shares},
        "load_average": os.getloadavg()[0],
        "runs": runs,
    }


def of_each(runs: dict[str, list[dict[str, float]]], name: str) -> float:
    return statistics.median(a["steps_per_s"] / b["steps_per_s"] for a, b in zip(runs["ours"], runs[name], strict=True))


def gpu_ratios(runs: dict[str, list[dict[str, float]]], floor_ms: float) -> dict[str, float]:
    return {"to the floor": statistics.median(1e-3 * floor_ms * run["steps_per_s"] for run in runs["ours"])}


def cpu_ratios(runs: dict[str, list[dict[str, float]]], floor_cpu_ms: float) -> dict[str, float]:
    pairs = list(zip(runs["ours"], runs["independent"], strict=True))
    busy = [min(1.0, ours["cores"] / free["cores"]) for ours, free in pairs]
    cheap = [1e-3 * floor_cpu_ms / ours["cpu_s_per_step"] for ours, _ in pairs]
    together = [free["cpu_s_per_step"] / ours["cpu_s_per_step"] for ours, free in pairs]
    return {
        "cpu, floor / ours": statistics.median(cheap),
        "cpu, independent / ours": statistics.median(together),
        "cores kept busy": statistics.median(busy),
        "to the floor": statistics.median(a * b for a, b in zip(cheap, busy, strict=True)),
        "to the floor, as the independent processes have it": statistics.median(
            a * b for a, b in zip(together, busy, strict=True)
        ),
    }


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items() if key != "runs"}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--env", nargs="+", default=["latentgym/TabletopReach-v0", "metaworld/reach-v3"])
    parser.add_argument("--encoder", default="random", help="name, folder or hub id")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--inference", default="auto", help="auto, main or workers: where ours encodes and acts")
    parser.add_argument("--no-vector", action="store_true")
    arguments = parser.parse_args()
    for env_id in arguments.env:
        result = compare(env_id, arguments)
        print(json.dumps(rounded(result), indent=1), flush=True)
        path = arguments.out / f"{env_id.replace('/', '-')}.json"
        path.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
