"""Success of every head on every encoder, counted, on five tasks of three suites.

    python benchmarks/heads.py OUT [--workers 2] [--task ID ...] [--rollouts 50]

Records demonstrations and random actions of every task, pretrains the small encoders on the training episodes of all
tasks, trains every head on every encoder's latents, rolls them out and prints a Markdown table. Every head has the same
steps, batch and principal components of the same latents, and meets the same initial states. What is finished is not
run again; ``OUT/results`` holds a JSON file per cell with its times.
"""

# ruff: noqa: E402 - the environment is set before libraries read it

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

# One thread per process; read when the libraries are loaded.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["LP_NUM_THREADS"] = "0"

from latentgym.encoders import FeatureCache, load_encoder
from latentgym.encoders.pretraining import pretrain
from latentgym.envs.recording import record
from latentgym.policies import train_policy
from latentgym.policies.heads import HEADS
from latentgym.rollouts import evaluate, rollout_seeds
from latentgym.statistics import wilson_interval
from latentgym.trajectories import open_dataset, split_episodes

TASKS: dict[str, dict[str, Any]] = {
    "latentgym/TabletopReach-v0": {},
    "latentgym/TabletopPush-v0": {},
    "metaworld/reach-v3": {},
    "metaworld/button-press-v3": {},
    "robosuite/Lift-v0": {"horizon": 70},
}
OBJECTIVES = ("pixel_autoencoder", "image_ssl")
EPISODES, RANDOM_FRACTION, PRETRAINING_STEPS = 60, 0.15, 400
STEPS, BATCH_SIZE, COMPONENTS = 600, 128, 64
# A transformer that trains on one CPU thread in seconds.
HEAD_OPTIONS = {"action_chunking": {"embedding": 64, "layers": 1}}
ROLLOUT_BATCH = 5
Cell = tuple[str, str, str]


def folder_of(out: Path, task: str) -> Path:
    return out / "data" / task.replace("/", "-")


def result_of(out: Path, cell: Cell) -> Path:
    return out / "results" / f"{'.'.join(cell).replace('/', '-')}.json"


def record_task(out: Path, task: str) -> None:
    if not folder_of(out, task).is_dir():
        record(
            task, folder_of(out, task), episodes=EPISODES, policy="noisy-expert", seed=0,
            random_fraction=RANDOM_FRACTION, env_options=TASKS[task],
        )  # fmt: skip


def pretrain_encoder(out: Path, tasks: Sequence[str], objective: str) -> None:
    if not (out / objective / "encoder.json").exists():
        datasets = [open_dataset(folder_of(out, task)) for task in tasks]
        pairs = [(dataset, split_episodes(dataset, seed=0).train) for dataset in datasets]
        pretrain(objective, pairs, out=out / objective, seed=0, steps=PRETRAINING_STEPS, batch_size=64, checkpoints=())


def run_cell(out: Path, rollouts: int, cell: Cell) -> str:
    task, name, head = cell
    dataset = open_dataset(folder_of(out, task))
    encoder = load_encoder(str(out / name) if name in OBJECTIVES else name, device="cpu")
    start = time.process_time()
    # A head on the simulator's state sees every velocity in one observation.
    policy = train_policy(
        dataset, encoder, head=head, split=split_episodes(dataset, seed=0), steps=STEPS, batch_size=BATCH_SIZE,
        components=COMPONENTS, history=1 if name == "state" else 3, head_options=HEAD_OPTIONS.get(head),
        cache=FeatureCache(out / "cache" / f"{name}-{task.replace('/', '-')}-{head}"),
    )  # fmt: skip
    trained = time.process_time()
    summary = evaluate(task, policy, rollout_seeds(0, task, rollouts), batch_size=ROLLOUT_BATCH).summary
    times = {"training_cpu_s": trained - start, "rollout_cpu_s": time.process_time() - trained}
    found = {"task": task, "encoder": name, "head": head, "cloning_r2": policy.cloning_r2, **times}
    path = result_of(out, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**found, "successes": summary.successes, "episodes": summary.episodes}))
    return f"{task} {name} {head}: {summary.successes}/{summary.episodes}, {times}"


def print_table(out: Path, cells: Sequence[Cell]) -> None:
    print("| task | encoder | " + " | ".join(HEADS) + " |")
    print("|---|---|" + "---|" * len(HEADS))
    for (task, encoder), row in itertools.groupby(cells, key=lambda cell: cell[:2]):
        print(f"| `{task}` | {encoder} | " + " | ".join(rate_of(result_of(out, cell)) for cell in row) + " |")


def rate_of(path: Path) -> str:
    if not path.exists():
        return ""
    item = json.loads(path.read_text())
    low, high = wilson_interval(item["successes"], item["episodes"])
    return f"{item['successes']}/{item['episodes']} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--rollouts", type=int, default=50)
    arguments = parser.parse_args()
    out, tasks = arguments.out, arguments.task
    cells: list[Cell] = list(itertools.product(tasks, ("state", "random", *OBJECTIVES), HEADS))
    # The slowest simulator first, so that nothing long is left over at the end.
    missing = [cell for cell in reversed(cells) if not result_of(out, cell).exists()]
    steps: list[tuple[Callable[[Any], Any], Sequence[Any]]] = [
        (functools.partial(record_task, out), tasks),
        (functools.partial(pretrain_encoder, out, tasks), OBJECTIVES),
        (functools.partial(run_cell, out, arguments.rollouts), missing),
    ]
    with ProcessPoolExecutor(arguments.workers, multiprocessing.get_context("spawn")) as pool:
        for work, items in steps:
            for done in pool.map(work, items):
                if done:
                    print(done, flush=True)
    print_table(out, cells)


if __name__ == "__main__":
    main()
