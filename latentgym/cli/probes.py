"""Probing latents offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from latentgym.cli.app import app
from latentgym.cli.arguments import Data, DataOption, Json, Seed, parse_options
from latentgym.cli.printing import print_rows


@app.command()
def probe(
    data: Data,
    encoder: Annotated[list[str], typer.Option("--encoder", help="Name, folder or hub id; repeatable.")],
    seed: Seed = 0,
    horizon: Annotated[list[int], typer.Option(help="Horizon k in steps; repeatable.")] = [1, 4],  # noqa: B006
    readout: Annotated[
        list[str], typer.Option(help="ridge, ridge_mean, mlp, attentive or transformer; repeatable.")
    ] = ["ridge", "ridge_mean", "mlp"],  # noqa: B006
    input: Annotated[list[str], typer.Option(help="pair, difference, single or window; repeatable.")] = [  # noqa: B006
        "pair",
        "single",
    ],
    target: Annotated[list[str], typer.Option(help="mean, first or chunk; repeatable.")] = ["mean", "first"],  # noqa: B006
    description_length: Annotated[
        bool, typer.Option("--description-length", help="Add code lengths and the sample-efficiency curve.")
    ] = False,
    cache: Annotated[Path | None, typer.Option(help="Feature cache to use and fill.")] = None,
    data_option: DataOption = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Probe frozen latents for the action, with every floor and an interval beside each number."""
    from latentgym.encoders import FeatureCache
    from latentgym.probes import probe as run_probe
    from latentgym.probes import probe_floors
    from latentgym.trajectories import open_dataset, split_episodes

    dataset = open_dataset(data, **parse_options(data_option, "--data-option"))
    settings: dict[str, Any] = {"split": split_episodes(dataset, seed=seed), "horizons": tuple(horizon)}
    features = FeatureCache(cache) if cache else None
    rows = list(probe_floors(dataset, **settings))
    floors = [name for name in ("random", "pixels", "proprio", "state") if name not in encoder]
    for source in [*encoder, *floors]:
        result = run_probe(
            dataset,
            source,
            **settings,
            readouts=tuple(readout),
            inputs=cast(Any, tuple(input)),
            targets=tuple(target),
            description_length=description_length,
            seed=seed,
            cache=features,
        )
        rows += result.rows
    print_rows(str(data), rows, as_json)


@app.command()
def layers(
    data: Data,
    encoder: Annotated[list[str], typer.Option("--encoder", help="Name, folder or hub id; repeatable.")],
    plot: Annotated[Path | None, typer.Option(help="HTML file for the depth profile.")] = None,
    seed: Seed = 0,
    horizon: Annotated[int, typer.Option(min=1, help="Horizon k in steps.")] = 1,
    cache: Annotated[Path | None, typer.Option(help="Feature cache to use and fill.")] = None,
    data_option: DataOption = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Probe every block of an encoder, from one pass over the frames, and draw its depth profile."""
    from latentgym.encoders import FeatureCache
    from latentgym.probes import probe_layers, write_depth_profile
    from latentgym.trajectories import open_dataset

    dataset, rows = open_dataset(data, **parse_options(data_option, "--data-option")), []
    features = FeatureCache(cache) if cache else None
    for source in encoder:
        rows += probe_layers(dataset, source, k=horizon, seed=seed, cache=features).rows
    if plot is not None:
        write_depth_profile(plot, rows)
    print_rows(str(data), rows, as_json)


@app.command()
def robustness(
    data: Data,
    encoder: Annotated[list[str], typer.Option("--encoder", help="Name, folder or hub id; repeatable.")],
    condition: Annotated[
        list[str] | None, typer.Option(help="Corruption and severity, such as snow:3; repeatable.")
    ] = None,
    readout: Annotated[list[str], typer.Option(help="ridge or mlp; repeatable.")] = ["ridge"],  # noqa: B006
    per_frame: Annotated[bool, typer.Option("--per-frame", help="Draw noise anew for every frame.")] = False,
    seed: Seed = 0,
    horizon: Annotated[int, typer.Option(min=1, help="Horizon k in steps.")] = 1,
    cache: Annotated[Path | None, typer.Option(help="Feature cache to use and fill.")] = None,
    data_option: DataOption = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Test readouts of clean latents on corrupted clips and under temporal stress."""
    from latentgym.encoders import FeatureCache
    from latentgym.probes import robustness as run_robustness
    from latentgym.probes.robustness import DEFAULT_CONDITIONS
    from latentgym.trajectories import open_dataset

    dataset, rows = open_dataset(data, **parse_options(data_option, "--data-option")), []
    features = FeatureCache(cache) if cache else None
    for source in encoder:
        rows += run_robustness(
            dataset,
            source,
            k=horizon,
            conditions=tuple(condition or DEFAULT_CONDITIONS),
            readouts=tuple(readout),
            mode="per_frame" if per_frame else "static",
            seed=seed,
            cache=features,
        ).rows
    print_rows(str(data), rows, as_json)
