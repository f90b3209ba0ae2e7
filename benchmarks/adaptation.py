"""Action R² on held-out episodes: frozen, adapter arm, fine-tune arm, and both controls, from one data set.

Run: python benchmarks/adaptation.py DATA ENCODER OUT [--image-size N] [--steps N] [--batch-size N]
    [--arm ARM] [--trunk-learning-rate R]
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

from latentgym.encoders import FeatureCache, load_encoder
from latentgym.encoders.adaptation import adapt
from latentgym.probes import probe
from latentgym.trajectories import open_dataset, split_episodes


def main() -> None:
    """Adapt, probe afresh with ridge, and print one line per encoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("encoder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--trunk-learning-rate", type=float, default=1e-4)
    parser.add_argument("--arm", action="append", choices=("adapter", "finetune"))
    args = parser.parse_args()
    dataset = open_dataset(args.data)
    split, cache = split_episodes(dataset), FeatureCache(args.out / "features")
    runs = [("frozen", None, False), *((arm, arm, False) for arm in args.arm or ("adapter", "finetune"))]
    runs += [(f"{arm} control", arm, True) for _, arm, _ in runs[1:]]
    for name, arm, control in runs:
        start = time.perf_counter()
        source = args.encoder
        if arm is not None:
            source = adapt(
                args.encoder, dataset, out=args.out / name.replace(" ", "-"), arm=arm, control=control, split=split,
                steps=args.steps, batch_size=args.batch_size, image_size=args.image_size,
                trunk_learning_rate=args.trunk_learning_rate,
            )  # fmt: skip
        seconds = time.perf_counter() - start
        encoder = load_encoder(source, image_size=args.image_size)
        rows = probe(
            dataset, encoder, split=split, horizons=(1,), inputs=("pair",), readouts=("ridge", "ridge_mean"),
            targets=("mean",), controls=(), cache=cache,
        ).rows  # fmt: skip
        found = [row for row in rows if (row.metric, row.dimension, row.subset) == ("action_r2", "macro", "all")]
        for readout, row in itertools.groupby(found, key=lambda row: row.readout):
            (one,) = row
            print(
                f"{name:18s} {readout:10s} {one.value:.3f} [{one.low:.3f}, {one.high:.3f}] {seconds:5.0f} s", flush=True
            )


if __name__ == "__main__":
    main()
