"""What environments and this machine can do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from latentgym.cli.app import app, assets_app, check_app
from latentgym.cli.arguments import Assets, Json, parse_options, use_assets
from latentgym.cli.printing import print_json, report_problems


@check_app.command("env")
def check_environment(
    env: Annotated[str, typer.Argument(help="Environment id.")],
    option: Annotated[list[str], typer.Option(help="key=value for the environment; repeatable.")] = [],  # noqa: B006
    assets: Assets = None,
) -> None:
    """Check an environment against the contract; all problems at once."""
    use_assets(assets)
    from latentgym.envs.conformance import check_env

    report_problems(env, check_env(env, **parse_options(option)))


@assets_app.command("calvin")
def assets_calvin(
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder to make; the user's cache by default.")
    ] = None,
    source: Annotated[
        list[str],
        typer.Option(
            help="Folder or local git clone of mees/calvin_env, and of mees/calvin for its sentences; repeatable; by "
            "default both on GitHub."
        ),
    ] = [],  # noqa: B006
) -> None:
    """Fetch CALVIN's scenes at the pinned revision, every file checked."""
    from latentgym.envs.calvin.assets import default_folder, fetch_assets, instructions
    from latentgym.progress import track_counts

    with track_counts("fetching CALVIN's assets", None) as progress:
        folder = fetch_assets(out, source, progress=progress)
    if not instructions(folder):
        print("the source holds no instruction sentences; tasks will be named in plain words", file=sys.stderr)
    print(f"CALVIN's assets are in {folder}")
    if folder != default_folder():
        print(f"tell latentgym: export CALVIN_ENV_ROOT={folder.resolve()}")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what works on this machine, what does not, and how to mend it."""
    from latentgym.envs.doctor import describe, diagnose

    findings = diagnose()
    if as_json:
        print_json(findings)
        return
    print(describe(findings))
