"""Success of every head on every encoder, counted, on a few tasks of three suites.

    python benchmarks/heads.py record OUT TASK...      # demonstrations and random actions, recorded once
    python benchmarks/heads.py pretrain OUT            # one small encoder on the training episodes of every task
    python benchmarks/heads.py run OUT TASK...         # latents are cached; heads train on them and are rolled out
    python benchmarks/heads.py table OUT               # Markdown

Every head has the same steps, batch and principal components of the same latents, and meets the same initial states.
What is finished is not run again.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from latentgym.encoders import FeatureCache, load_encoder
from latentgym.encoders.pretraining import pretrain
from latentgym.envs.recording import record
from latentgym.policies import train_policy
from latentgym.policies.heads import HEADS
from latentgym.rollouts import evaluate, rollout_seeds
from latentgym.trajectories import open_dataset, split_episodes

TASKS: dict[str, dict[str, Any]] = {
    "latentgym/TabletopReach-v0": {},
    "latentgym/TabletopPush-v0": {},
    "metaworld/reach-v3": {},
    "metaworld/button-press-v3": {},
    "robosuite/Lift-v0": {"horizon": 70},
}
OBJECTIVE = "pixel_autoencoder"
EPISODES, RANDOM_FRACTION, PRETRAINING_STEPS = 60, 0.25, 400
STEPS, BATCH_SIZE, COMPONENTS = 600, 128, 64
# A transformer that trains on one CPU thread in seconds.
HEAD_OPTIONS = {"action_chunking": {"embedding": 64, "layers": 1}}
ROLLOUTS, ROLLOUT_BATCH = 15, 5
# robosuite steps and renders several times slower than the others.
FEWER_ROLLOUTS = {"robosuite/Lift-v0": 10}


def folder_of(out: Path, task: str) -> Path:
    return out / "data" / task.replace("/", "-")


def record_task(out: Path, task: str) -> None:
    record(
        task, folder_of(out, task), episodes=EPISODES, policy="noisy-expert", seed=0,
        random_fraction=RANDOM_FRACTION, env_options=TASKS[task],
    )  # fmt: skip


def pretrain_encoder(out: Path) -> None:
    datasets = [open_dataset(folder_of(out, task)) for task in TASKS if folder_of(out, task).is_dir()]
    pairs = [(dataset, split_episodes(dataset, seed=0).train) for dataset in datasets]
    pretrain(OBJECTIVE, pairs, out=out / "encoder", seed=0, steps=PRETRAINING_STEPS, batch_size=64, checkpoints=())


def run_task(out: Path, task: str) -> None:
    dataset = open_dataset(folder_of(out, task))
    split, seeds = split_episodes(dataset, seed=0), rollout_seeds(0, task, FEWER_ROLLOUTS.get(task, ROLLOUTS))
    for name, source in (("state", "state"), ("random", "random"), (OBJECTIVE, str(out / "encoder"))):
        encoder = load_encoder(source)
        for head in HEADS:
            path = out / "results" / f"{task.replace('/', '-')}.{name}.{head}.json"
            if path.exists():
                continue
            start = time.process_time()
            # A head on the simulator's state sees every velocity in one observation.
            policy = train_policy(
                dataset, encoder, head=head, split=split, steps=STEPS, batch_size=BATCH_SIZE, components=COMPONENTS,
                history=1 if name == "state" else 3, head_options=HEAD_OPTIONS.get(head),
                cache=FeatureCache(out / "cache"),
            )  # fmt: skip
            trained = time.process_time()
            summary = evaluate(task, policy, seeds, batch_size=ROLLOUT_BATCH).summary
            times = {"training_cpu_s": trained - start, "rollout_cpu_s": time.process_time() - trained}
            found = {"task": task, "encoder": name, "head": head, "cloning_r2": policy.cloning_r2, **times}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**found, "successes": summary.successes, "episodes": summary.episodes}))
            print(f"{task} {name} {head}: {summary.successes}/{summary.episodes}, {times}", flush=True)


def print_table(out: Path) -> None:
    found = [json.loads(path.read_text()) for path in sorted((out / "results").glob("*.json"))]
    cells = {(item["task"], item["encoder"], item["head"]): item for item in found}
    print("| task | encoder | " + " | ".join(HEADS) + " |")
    print("|---|---|" + "---|" * len(HEADS))
    for task in TASKS:
        for encoder in ("state", "random", OBJECTIVE):
            items = [cells.get((task, encoder, head)) for head in HEADS]
            if any(items):
                counts = [f"{item['successes']}/{item['episodes']}" if item else "" for item in items]
                print(f"| `{task}` | {encoder} | " + " | ".join(counts) + " |")


def main() -> None:
    verb, out, tasks = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    if verb == "pretrain":
        pretrain_encoder(out)
    elif verb == "table":
        print_table(out)
    for task in tasks:
        {"record": record_task, "run": run_task}[verb](out, task)


if __name__ == "__main__":
    main()
