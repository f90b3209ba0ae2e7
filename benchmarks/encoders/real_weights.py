"""Action R² of pretrained weights, block by block, beside the floors and the same network with random weights.

    python benchmarks/encoders/real_weights.py OUT --env ENV ... --encoder SOURCE[@SIZE] ... [--episodes 40]

Ridge on pairs at horizon 1, default pooling, held-out episodes. The best block is chosen on the validation episodes.
The random twin is read at the best and the last block.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from latentgym.encoders import Encoder, FeatureCache, load_encoder
from latentgym.encoders.twin import random_twin
from latentgym.envs.recording import record
from latentgym.probes import probe, probe_layers
from latentgym.results import Row
from latentgym.trajectories import Dataset

FLOORS = ("constant", "previous_action", "pixel_pca", "pixels", "proprio", "state")


def shown(name: str, row: Row) -> None:
    print(f"  {name:48s} {row.value:6.3f} [{row.low:.3f}, {row.high:.3f}]", flush=True)


def headline(rows: list[Row], metric: str) -> Row:
    return next(row for row in rows if (row.metric, row.dimension, row.subset) == (metric, "macro", "all"))


def score_floor(dataset: Dataset, name: str, cache: FeatureCache) -> None:
    rows = probe(
        dataset, name, horizons=(1,), inputs=("pair",), readouts=("ridge",), targets=("mean",), controls=(),
        description_length=False, cache=cache,
    ).rows  # fmt: skip
    shown(name, headline(rows, "action_r2"))


def score(dataset: Dataset, encoder: Encoder, cache: FeatureCache) -> None:
    began = time.perf_counter()
    profile = probe_layers(dataset, encoder, cache=cache)
    name, last = encoder.spec.name, encoder.spec.layers - 1
    shown(f"{name}, last block ({last})", headline(profile.rows, "action_r2_last_layer"))
    shown(f"{name}, best block ({profile.best_layer})", headline(profile.rows, "action_r2_best_layer"))
    twin = probe_layers(dataset, random_twin(encoder), layers=sorted({profile.best_layer, last}), cache=cache)
    for layer in sorted({profile.best_layer, last}):
        rows = [row for row in twin.rows if row.layer == layer]
        shown(f"{name}, random weights, block {layer}", headline(rows, "action_r2"))
    print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--env", nargs="+", required=True)
    parser.add_argument("--encoder", nargs="+", required=True)
    parser.add_argument("--episodes", type=int, default=40)
    arguments = parser.parse_args()
    cache = FeatureCache(arguments.out / "features")
    for env_id in arguments.env:
        folder = arguments.out / env_id.replace("/", "-")
        dataset = record(env_id, folder, episodes=arguments.episodes, random_fraction=0.15)
        print(f"{env_id}, {len(dataset)} episodes", flush=True)
        for name in FLOORS:
            score_floor(dataset, name, cache)
        for source in arguments.encoder:
            place, _, size = source.partition("@")
            score(dataset, load_encoder(place, image_size=int(size) if size else None), cache)


if __name__ == "__main__":
    main()
