"""Probing latents offline."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from latentgym.artifacts import check_output
from latentgym.cli.app import app
from latentgym.cli.arguments import (
    Cache,
    Data,
    DataOption,
    Encoders,
    Horizon,
    Json,
    Seed,
    SplitSeed,
    open_cache,
    open_data,
)
from latentgym.cli.printing import print_rows
from latentgym.errors import LatentGymError

if TYPE_CHECKING:
    from latentgym.probes import ProbeResult
    from latentgym.results import Row
    from latentgym.trajectories import Dataset, Split


@app.command()
def probe(
    data: Data,
    encoder: Encoders,
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
    description_length: Annotated[bool, typer.Option(help="Code lengths and the sample-efficiency curve.")] = True,
    fidelity: Annotated[
        bool, typer.Option("--fidelity", help="Also train one decoder of equal size per encoder: PSNR, SSIM, GMSD.")
    ] = False,
    split_seed: SplitSeed = 0,
    cache: Cache = None,
    data_option: DataOption = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Probe frozen latents for the action, with every floor and an interval beside each number."""
    from latentgym.probes import probe as run_probe
    from latentgym.probes import probe_floors
    from latentgym.probes.report import share_of_ceiling
    from latentgym.trajectories import split_episodes

    features = open_cache(cache)
    dataset = open_data(data, data_option)
    settings: dict[str, Any] = {"split": split_episodes(dataset, seed=split_seed), "horizons": tuple(horizon)}
    _open_first(encoder, floors=True)
    rows = list(probe_floors(dataset, **settings))
    results: dict[str, ProbeResult] = {}
    sources = [(name, input) for name in encoder]
    for source, kinds in (*sources, *_floors(dataset, encoder, input)):
        results[source] = run_probe(
            dataset,
            source,
            **settings,
            readouts=tuple(readout),
            inputs=cast(Any, tuple(kinds)),
            targets=tuple(target),
            description_length=description_length,
            seed=seed,
            cache=features,
        )
        rows += results[source].rows
    shares = [
        share_of_ceiling(result, results["state"], k)
        for source, result in results.items()
        if source != "state" and "state" in results
        for k in horizon
    ]
    rows += [share for share in shares if share is not None]
    if fidelity:
        rows += _fidelity_rows(dataset, settings["split"], list(results), seed)
    print_rows(str(data), rows, as_json)


def _open_first(encoders: Sequence[str], *, floors: bool = False, pixels: bool = False) -> None:
    """Open every encoder before the first is probed: a wrong one would cost what the others have found.

    Args:
        encoders: their sources.
        floors: whether floors that have no encoder may be among them.
        pixels: whether they must read frames.
    """
    from latentgym.encoders import load_encoder
    from latentgym.probes.floors import FITTED_FLOORS, FLOORS

    for name in encoders if len(encoders) > 1 else ():
        if not floors or name not in (*FLOORS, *FITTED_FLOORS):
            spec = load_encoder(name, device="cpu").spec
            if pixels and spec.modality != "pixels":
                raise LatentGymError(f"encoder {spec.name!r} reads no pixels to corrupt; choose one that does")


def _floors(dataset: Dataset, chosen: Sequence[str], inputs: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Floors and references to set beside the encoders chosen, each with the inputs that it can be probed on."""
    from latentgym.encoders import load_encoder

    first = dataset.episode(0, cameras=())
    columns = {"proprio": first.proprio.shape[1], "state": first.state.shape[1]}
    for name in ("random", "pixels", "proprio", "state"):
        if name in chosen:
            continue
        if name in ("random", "pixels") and not dataset.cameras:
            print(f"leaving out {name}: the data were recorded without cameras", file=sys.stderr)
        elif name == "state" and not dataset.uniform_state:
            print("leaving out state: it is not equally wide in all tasks of the data", file=sys.stderr)
        elif columns.get(name) == 0:
            print(f"leaving out {name}: the data have no columns of it", file=sys.stderr)
        elif "window" in inputs and load_encoder(name).spec.temporal:
            print(f"leaving out {name} on input window: it reads clips itself", file=sys.stderr)
            if kinds := [kind for kind in inputs if kind != "window"]:
                yield name, kinds
        else:
            yield name, inputs


def _fidelity_rows(dataset: Dataset, split: Split, sources: list[str], seed: int) -> list[Row]:
    """Rows of the equal decoder for every encoder that reads pixels."""
    from latentgym.encoders import load_encoder
    from latentgym.probes import fidelity
    from latentgym.probes.floors import FITTED_FLOORS, FLOORS

    rows: list[Row] = []
    for source in sources:
        encoder = None if source in (*FLOORS, *FITTED_FLOORS) else load_encoder(source)
        if encoder is not None and encoder.spec.modality == "pixels":
            rows += fidelity([(dataset, split)], encoder, seed=seed).rows
    return rows


@app.command()
def layers(
    data: Data,
    encoder: Encoders,
    plot: Annotated[Path | None, typer.Option(help="HTML file for the depth profile.")] = None,
    seed: Seed = 0,
    split_seed: SplitSeed = 0,
    horizon: Horizon = 1,
    cache: Cache = None,
    data_option: DataOption = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Probe every block of an encoder, from one pass over the frames, and draw its depth profile."""
    from latentgym.probes import probe_layers, write_depth_profile
    from latentgym.trajectories import split_episodes

    if plot is not None:
        check_output(plot, folder=False)
    dataset, rows = open_data(data, data_option), []
    _open_first(encoder)
    split, features = split_episodes(dataset, seed=split_seed), open_cache(cache)
    for source in encoder:
        rows += probe_layers(dataset, source, split=split, k=horizon, seed=seed, cache=features).rows
    if plot is not None:
        write_depth_profile(plot, rows)
    print_rows(str(data), rows, as_json)


@app.command()
def robustness(
    data: Data,
    encoder: Encoders,
    condition: Annotated[
        list[str] | None, typer.Option(help="Corruption and severity (3 by default), such as snow:3; repeatable.")
    ] = None,
    readout: Annotated[list[str], typer.Option(help="ridge or mlp; repeatable.")] = ["ridge"],  # noqa: B006
    per_frame: Annotated[bool, typer.Option("--per-frame", help="Draw noise anew for every frame.")] = False,
    seed: Seed = 0,
    split_seed: SplitSeed = 0,
    horizon: Horizon = 1,
    cache: Cache = None,
    data_option: DataOption = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Test readouts of clean latents on corrupted clips and under temporal stress."""
    from latentgym.probes import robustness as run_robustness
    from latentgym.probes.robustness import DEFAULT_CONDITIONS
    from latentgym.trajectories import split_episodes

    dataset, rows = open_data(data, data_option), []
    _open_first(encoder, pixels=True)
    split, features = split_episodes(dataset, seed=split_seed), open_cache(cache)
    for source in encoder:
        rows += run_robustness(
            dataset,
            source,
            split=split,
            k=horizon,
            conditions=tuple(condition or DEFAULT_CONDITIONS),
            readouts=tuple(readout),
            mode="per_frame" if per_frame else "static",
            seed=seed,
            cache=features,
        ).rows
    print_rows(str(data), rows, as_json)
