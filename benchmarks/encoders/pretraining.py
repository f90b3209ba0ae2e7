"""Steps per second of pretraining, one CPU thread beside a GPU, and how far the two losses are apart.

    python benchmarks/encoders/pretraining.py [--episodes 24] [--steps 100] [--batch 32 256] [--devices cpu cuda]

Both train on the same clips and noise. One line of JSON per objective, batch and device: ``steps_per_s`` after the
first ten steps, the time for clips included, and ``loss``, the mean of the last tenth of the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")

import torch

from latentgym.encoders.objectives import OBJECTIVES
from latentgym.encoders.pretraining import pretrain
from latentgym.envs.recording import record

WARM_UP = 10


def steps_per_s(objective: str, data: object, out: Path, steps: int, batch_size: int, device: str) -> dict[str, object]:
    times: list[float] = []
    folder = pretrain(
        objective, [(data, range(len(data)))], out=out, steps=steps, batch_size=batch_size, device=device,
        save_every=steps, progress=lambda *_: times.append(time.perf_counter()),
    )  # fmt: skip
    curve = json.loads((folder / "encoder.json").read_text())["training"]["loss_curve"]
    tail = [loss for _, loss in curve[-max(1, len(curve) // 10) :]]
    return {
        "objective": objective,
        "batch": batch_size,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu, 1 thread",
        "steps_per_s": round((len(times) - WARM_UP) / (times[-1] - times[WARM_UP - 1]), 1),
        "loss": round(sum(tail) / len(tail), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--devices", nargs="+", default=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = record("latentgym/TabletopPush-v0", folder / "data", episodes=arguments.episodes, seed=0)
        for objective in arguments.objectives:
            for batch in arguments.batch:
                for device in arguments.devices:
                    out = folder / f"{objective}-{batch}-{device}"
                    print(json.dumps(steps_per_s(objective, data, out, arguments.steps, batch, device)), flush=True)


if __name__ == "__main__":
    main()
