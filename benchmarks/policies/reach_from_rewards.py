"""Learning Meta-World's reach from rewards on frozen latents: trains, evaluates and draws the learning curves.

python benchmarks/policies/reach_from_rewards.py OUT state=state:4000 pretrained=encoders/pixel-autoencoder:13000
python benchmarks/policies/reach_from_rewards.py OUT            # draws what lies in OUT (needs matplotlib)
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from latentgym.policies import StableBaselinesPolicy, train_rl
from latentgym.rollouts import evaluate, rollout_seeds

ENV_ID = "metaworld/reach-v3"
ENV_OPTIONS = {"action_repeat": 5, "horizon": 12}
SAC: dict[str, Any] = {
    "learning_starts": 400, "learning_rate": 1e-3, "gamma": 0.9, "batch_size": 128, "train_freq": 4,
    "gradient_steps": 2, "policy_kwargs": {"net_arch": [128, 128]},
}  # fmt: skip
CHECKPOINTS = 6
EPISODES = 20
FINAL_EPISODES = 100
WINDOW = 50


def learn(out: Path, label: str, encoder: str, steps: int) -> None:
    start = time.process_time()

    def measure(step: int, policy: StableBaselinesPolicy) -> dict[str, Any]:
        summary = evaluate(ENV_ID, policy, rollout_seeds(1, ENV_ID, EPISODES)).summary
        found = {"successes": summary.successes, "episodes": summary.episodes, "mean_reward": summary.mean_reward}
        print(label, step, found, f"{time.process_time() - start:.0f} CPU s", flush=True)
        return found

    policy = train_rl(
        ENV_ID, encoder, steps=steps, keep=[] if encoder == "state" else ["proprio"], env_options=ENV_OPTIONS,
        algorithm_options=SAC, checkpoint_every=steps // CHECKPOINTS, on_checkpoint=measure,
    )  # fmt: skip
    cpu_s = time.process_time() - start
    final = evaluate(ENV_ID, policy, rollout_seeds(0, ENV_ID, FINAL_EPISODES))
    print(final.describe(), flush=True)
    record = {"encoder": encoder, "training_cpu_s": cpu_s, "final": final.to_dict()["summary"], **policy.facts}
    (out / f"{label}.json").write_text(json.dumps(record))


def draw(out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 3.6), dpi=120)
    for path in sorted(out.glob("*.json")):
        record = json.loads(path.read_text())
        curve = record["curve"]
        smooth = np.convolve(np.array(curve["success"], float), np.ones(WINDOW) / WINDOW, "valid")
        (line,) = axis.plot(curve["step"][WINDOW - 1 :], 100 * smooth, label=path.stem)
        points = curve["checkpoints"]
        axis.plot(
            [point["step"] for point in points],
            [100 * point["successes"] / point["episodes"] for point in points],
            "o", color=line.get_color(),
        )  # fmt: skip
    axis.set(xlabel="environment steps", ylabel="success, %", ylim=(-3, 103))
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(out / "reach-from-rewards.png")


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for argument in sys.argv[2:]:
        label, _, rest = argument.partition("=")
        encoder, _, steps = rest.rpartition(":")
        learn(out, label, encoder, int(steps))
    if len(sys.argv) == 2:
        draw(out)


if __name__ == "__main__":
    main()
