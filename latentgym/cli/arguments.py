"""Arguments and options that several verbs take."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentgym.artifacts import check_output
from latentgym.errors import LatentGymError

if TYPE_CHECKING:
    from latentgym.encoders import FeatureCache
    from latentgym.trajectories import Dataset

Data = Annotated[Path, typer.Argument(help="Folder of a recorded data set.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")]
Seed = Annotated[int, typer.Option(help="Root seed; equal seeds give equal bits.")]
SplitSeed = Annotated[
    int,
    typer.Option(
        help="Seed of the split into training, validation and test episodes; one and the same for every verb."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Encoder = Annotated[str, typer.Option("--encoder", help="Registered name, folder, or hub id.")]
Encoders = Annotated[list[str], typer.Option("--encoder", help="Name, folder or hub id; repeatable.")]
Horizon = Annotated[int, typer.Option(min=1, help="Horizon k in steps.")]
Cache = Annotated[Path | None, typer.Option(help="Feature cache to use and fill.")]
DataOption = Annotated[
    list[str],
    typer.Option(
        help="key=value of how a CALVIN folder or HDF5 demonstrations are read, such as split=tasks; repeatable."
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Worker processes.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:<index>, or auto.")]
Assets = Annotated[Path | None, typer.Option(help="Folder of CALVIN's assets, in place of CALVIN_ENV_ROOT.")]


def parse_options(pairs: list[str], option: str = "--option") -> dict[str, Any]:
    """``key=value`` pairs with JSON values; a value that is no JSON is text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign:
            raise LatentGymError(f"{option} takes key=value, found {pair!r}")
        if key == "env_id":
            raise LatentGymError(f"{option}: the environment's id is an argument of its own, found {pair!r}")
        try:
            options[key] = json.loads(text)
        except ValueError:
            options[key] = text
    return options


def open_data(folder: Path, pairs: list[str]) -> Dataset:
    """The data set in ``folder``, read as the ``--data-option`` pairs say."""
    from latentgym.trajectories import open_dataset

    return open_dataset(folder, **parse_options(pairs, "--data-option"))


def open_cache(folder: Path | None) -> FeatureCache | None:
    """The feature cache in ``folder``, where one is named."""
    from latentgym.encoders import FeatureCache

    if folder is None:
        return None
    check_output(folder)
    return FeatureCache(folder)


def check_new_policy(folder: Path) -> None:
    """Refuse a folder that a policy cannot be saved to, before it is trained."""
    if folder.exists():
        raise LatentGymError(f"{folder} exists already; choose another folder for the policy, or remove it first")
    check_output(folder)


def use_assets(folder: Path | None) -> None:
    """Let this process and its workers find CALVIN's assets in ``folder``."""
    if folder is not None:
        os.environ["CALVIN_ENV_ROOT"] = str(folder.resolve())
