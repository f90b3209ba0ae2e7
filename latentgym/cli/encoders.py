"""Encoders: listing, checking, training, features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from latentgym.artifacts import check_output
from latentgym.cli.app import app, check_app
from latentgym.cli.arguments import (
    Data,
    DataOption,
    DeviceOption,
    Encoder,
    Horizon,
    Json,
    Out,
    Seed,
    SplitSeed,
    open_data,
)
from latentgym.cli.printing import print_json, print_table, report_problems


@app.command()
def encoders(
    name: Annotated[str | None, typer.Argument(help="Explain this one.")] = None, as_json: Json = False
) -> None:
    """List encoders and pretraining objectives by family, or explain one."""
    from latentgym.encoders import describe_encoder, list_encoders

    if name is not None:
        found = describe_encoder(name)
        print(json.dumps(found, indent=1) if as_json else "\n".join(f"{key}: {item}" for key, item in found.items()))
        return
    rows = list_encoders()
    if as_json:
        print_json(rows)
        return
    print_table("encoders", rows, ["name", "family", "source", "licence", "parameters", "weights", "description"])


@app.command()
def pretrain(
    objective: Annotated[str, typer.Argument(help="Pretraining objective; see: latentgym encoders.")],
    data: Annotated[list[Path], typer.Argument(help="Folders of recorded data sets.")],
    out: Out,
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(min=1)] = 800,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    checkpoint: Annotated[list[int], typer.Option(help="Step of an intermediate checkpoint; repeatable.")] = [],  # noqa: B006
    split_seed: SplitSeed = 0,
    device: DeviceOption = "cpu",
    data_option: DataOption = [],  # noqa: B006
) -> None:
    """Pretrain a small encoder on the training episodes of one or more data sets."""
    from latentgym.encoders.pretraining import pretrain as run_pretraining
    from latentgym.progress import track_counts
    from latentgym.trajectories import split_episodes

    check_output(out)
    datasets = [open_data(path, data_option) for path in data]
    pairs = [(dataset, split_episodes(dataset, seed=split_seed).train) for dataset in datasets]
    with track_counts(f"pretraining {objective}", steps) as progress:
        folder = run_pretraining(
            objective, pairs, out=out, seed=seed, steps=steps, batch_size=batch_size,
            checkpoints=checkpoint, device=device, progress=progress,
        )  # fmt: skip
    print(f"encoder in {folder}")


@app.command()
def adapt(
    encoder: Annotated[str, typer.Argument(help="Registered name, folder, or hub id.")],
    data: Data,
    out: Out,
    arm: Annotated[str, typer.Option(help="adapter (frozen trunk) or finetune (whole trunk).")] = "adapter",
    control: Annotated[bool, typer.Option("--control", help="Permute the actions across episodes.")] = False,
    steps: Annotated[int, typer.Option(min=1)] = 300,
    seed: Seed = 0,
    horizon: Horizon = 1,
    batch_size: Annotated[int, typer.Option(min=2)] = 32,
    image_size: Annotated[int | None, typer.Option(help="Side of the frames in pixels; the encoder's own.")] = None,
    split_seed: SplitSeed = 0,
    trunk_learning_rate: Annotated[float, typer.Option(help="Peak learning rate of a fine-tuned trunk.")] = 1e-4,
    device: DeviceOption = "auto",
    data_option: DataOption = [],  # noqa: B006
) -> None:
    """Train an encoder further by inverse dynamics on the training episodes; the result loads by its folder."""
    from latentgym.encoders.adaptation import adapt as run_adaptation
    from latentgym.progress import track_counts
    from latentgym.trajectories import split_episodes

    check_output(out)
    dataset = open_data(data, data_option)
    split = split_episodes(dataset, seed=split_seed)
    with track_counts(f"adapting {encoder}", steps) as progress:
        folder = run_adaptation(
            encoder, dataset, out=out, arm=arm, control=control, steps=steps, seed=seed, k=horizon,
            batch_size=batch_size, split=split, image_size=image_size,
            trunk_learning_rate=trunk_learning_rate, device=device, progress=progress,
        )  # fmt: skip
    print(f"encoder in {folder}")


@app.command()
def encode(
    data: Data,
    encoder: Encoder,
    out: Out,
    view: Annotated[str, typer.Option(help="single, causal, or clip:K (frames t to t+K).")] = "causal",
    data_option: DataOption = [],  # noqa: B006
) -> None:
    """Encode a data set once into a feature cache; what is there already is not computed again."""
    from latentgym.encoders import FeatureCache, View, load_encoder
    from latentgym.progress import track_counts

    check_output(out)
    dataset = open_data(data, data_option)
    with track_counts("encoding", len(dataset)) as progress:
        features = FeatureCache(out).get(dataset, load_encoder(encoder), View.parse(view), progress=progress)
    print(f"{len(dataset)} episodes, {features.dim} numbers per row, in {out}")


@check_app.command("encoder")
def check_encoder_contract(
    encoder: Annotated[str, typer.Argument(help="Name, folder or hub id.")], as_json: Json = False
) -> None:
    """Check an encoder against the contract, all problems at once, and time it."""
    from latentgym.encoders import load_encoder
    from latentgym.encoders.conformance import check_encoder, frames_per_second

    opened = load_encoder(encoder)
    problems = check_encoder(opened)
    speed = None if problems else round(frames_per_second(opened), 1)
    if as_json:
        print(json.dumps({"encoder": encoder, "problems": problems, "frames_per_second": speed}, indent=1))
        if problems:
            raise typer.Exit(1)
        return
    report_problems(encoder, problems)
    print(f"{speed} frames/s on {opened.device}")
