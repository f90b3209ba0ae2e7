"""Recording, and looking after recorded data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from latentgym.artifacts import check_output
from latentgym.cli.app import app, data_app
from latentgym.cli.arguments import Assets, Data, DataOption, Out, Seed, parse_options, use_assets
from latentgym.errors import LatentGymError


@app.command()
def record(
    env: Annotated[str, typer.Argument(help="Environment id, such as latentgym/TabletopReach-v0.")],
    out: Out,
    episodes: Annotated[int, typer.Option(min=1)] = 100,
    policy: Annotated[str, typer.Option(help="expert, noisy-expert or random.")] = "noisy-expert",
    seed: Seed = 0,
    num_envs: Annotated[int, typer.Option(min=1, help="Processes; the data do not depend on it.")] = 1,
    random_fraction: Annotated[float, typer.Option(help="Share of episodes driven by random actions.")] = 0.0,
    expert: Annotated[
        Path | None, typer.Option(help="Trained policy, or its model file, in place of the scripted expert.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the frames in pixels; 64, CALVIN 200.")] = None,
    option: Annotated[list[str], typer.Option(help="key=value for the environment; repeatable.")] = [],  # noqa: B006
    assets: Assets = None,
) -> None:
    """Record trajectories; an interrupted recording continues where it stopped."""
    use_assets(assets)
    check_output(out)
    from latentgym.envs.recording import record as record_episodes
    from latentgym.policies import LearnedExpert
    from latentgym.progress import track_counts

    with track_counts(f"recording {env}", episodes) as progress:
        dataset = record_episodes(
            env,
            out,
            episodes=episodes,
            policy=policy,
            seed=seed,
            num_envs=num_envs,
            random_fraction=random_fraction,
            image_size=image_size,
            env_options=parse_options(option),
            expert=None if expert is None else LearnedExpert(expert),
            progress=progress,
        )
    print(f"{len(dataset)} episodes, {int(dataset.lengths.sum())} steps in {out}")


@data_app.command("check")
def data_check(data: Data, data_option: DataOption = []) -> None:  # noqa: B006
    """Read every file of a data set and list all problems at once."""
    from latentgym.progress import track_counts
    from latentgym.trajectories import inspect_dataset

    with track_counts("checking", None) as progress:
        report = inspect_dataset(data, progress=progress, **parse_options(data_option, "--data-option"))
    for note in report.notes:
        print(note)
    for problem in report.problems:
        print(problem, file=sys.stderr)
    if report.problems:
        raise LatentGymError(f"{data}: {len(report.problems)} problem(s)")
    print(f"{data}: no problems")


@data_app.command("convert")
def data_convert(
    source: Annotated[Path, typer.Argument(help="Folder of a CALVIN data set, or of one converted from CALVIN.")],
    out: Out,
    to: Annotated[str, typer.Option("--format", help="native or calvin.")] = "native",
    segment_steps: Annotated[int, typer.Option(min=1, help="Longest episode of the native data set, in steps.")] = 64,
) -> None:
    """Turn a CALVIN data set into a native one, or back, without losing a bit; can be interrupted and continued."""
    from latentgym.progress import track_counts
    from latentgym.trajectories.formats.calvin_conversion import convert

    check_output(out)
    with track_counts("converting", None) as progress:
        count = convert(source, out, to, segment_steps=segment_steps, progress=progress)
    print(f"{count} episodes in {out}")
