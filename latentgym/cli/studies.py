"""Studies, their claims and reports, and the link."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentgym.artifacts import check_output
from latentgym.cli.app import app
from latentgym.cli.arguments import Json, Out, Seed
from latentgym.cli.printing import print_json, print_table

if TYPE_CHECKING:
    from latentgym.rollouts import LinkResult


@app.command()
def study(
    source: Annotated[str, typer.Argument(help="quickstart, smoke, standard, paper, or a TOML file.")],
    out: Out,
    seed: Annotated[int | None, typer.Option(help="Root seed, in place of the configuration's.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; one per core by default.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of pretrained encoders, one folder each.")] = None,
) -> None:
    """Run a whole study, or continue one that was stopped, and write its report."""
    check_output(out)
    from latentgym.encoders import find_encoders
    from latentgym.studies.study import run_study

    found, skipped = find_encoders(weights) if weights else ({}, {})
    for name, reason in skipped.items():
        print(f"leaving out {name}: {reason}", file=sys.stderr)
    report = run_study(source, out, seed=seed, workers=workers, weights=found)
    print(f"report: {report}")


@app.command()
def claims(
    results: Annotated[list[Path], typer.Argument(help="Folders of finished studies.")],
    as_json: Json = False,
) -> None:
    """Evaluate the pre-declared claims on finished studies."""
    from latentgym.studies.claims import claims_of

    rows = [claim.to_dict() for claim in claims_of(*results)]
    if as_json:
        print_json(rows)
        return
    columns = ["claim", "scope", "benchmark", "part", "value", "low", "high", "n_runs", "verdict", "reason"]
    print_table("claims", rows, columns)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of a finished study.")]) -> None:
    """Write a finished study's report again."""
    from latentgym.studies.report import write_report

    print(f"report: {write_report(folder)}")


@app.command()
def link(
    results: Annotated[list[Path], typer.Argument(help="Study folders, or their link_points.json.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Page to write; link.html, or none with --json.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Ask how well each proxy predicts task success, over one or more studies; write a page to look into it."""
    from latentgym.studies.link_page import link_folders, write_link_page

    if out is not None:
        check_output(out, folder=False)
    found = link_folders(*results, seed=seed)
    page = None if as_json and out is None else write_link_page(found, out or Path("link.html"))
    if as_json:
        print_json(found.to_dict())
        return
    for scope in dict.fromkeys(item.scope for item in found.result.ranking):
        print_table(f"proxies by how well they predict success: {scope}", *_ranking(found.result, scope))
    print(f"page: {page}")


def _ranking(result: LinkResult, scope: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and columns of the proxies' ranking over all tasks."""
    statistics = ("spearman", "kendall", "pearson", "mmrv", "regret", "partial_spearman")
    envs = [row.env for row in result.rows]
    place = "all" if "all" in envs else envs[0]
    cells = {(row.proxy, row.statistic): row for row in result.rows if (row.env, row.scope) == (place, scope)}
    rows: list[dict[str, Any]] = []
    for item in (item for item in result.ranking if item.scope == scope):
        spread = "" if item.low is None else f"{item.low} to {item.high}"
        rho = cells.get((item.proxy, "spearman"))
        interval = "" if rho is None or rho.low is None else f"{rho.low:.2f} to {rho.high:.2f}"
        row: dict[str, Any] = {"rank": item.rank, "range": spread, "proxy": item.proxy, "interval": interval}
        row |= {name: cells[item.proxy, name].value for name in statistics if (item.proxy, name) in cells}
        rows.append(row | {"verdict": None if rho is None else rho.verdict})
    return rows, ["rank", "range", "proxy", "spearman", "interval", *statistics[1:], "verdict"]
