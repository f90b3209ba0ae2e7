"""The report: one HTML page that opens from disk, offline, and answers the study's question before anything else."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from latentgym.artifacts import atomic_write
from latentgym.errors import CorruptDataError
from latentgym.studies import summary
from latentgym.studies.evidence import AGAIN, read_results, read_run
from latentgym.studies.pages import embedded, render_page, script_json
from latentgym.studies.summary import EncoderSummary, Estimate, Row
from latentgym.studies.tables import (
    chain_table,
    control_table,
    pareto_table,
    policy_corruption_tables,
    robustness_table,
    stress_table,
    temporal_table,
)
from latentgym.studies.wording import METRICS, label_env, label_metric, label_name

# Only in the tables of single tasks: the main table must fit a page.
DETAIL_COLUMNS = ("action_r2_share_of_state", "single_frame_r2")
# Rows of the link that annotate another statistic's cell: that statistic, and the part of its cell.
LINK_NOTES = {
    "mmrv_null": ("mmrv", "null"),
    "regret_null": ("regret", "null"),
    "spearman_leave_one_family_out": ("spearman", "left_out"),
}
# Curves are drawn with at most this many points: more cannot be seen.
CURVE_POINTS = 160


def write_report(study_dir: Path) -> Path:
    """Write ``report.html`` from ``results.json`` and ``run.json``.

    Every part that the study lacks (videos, fidelity, the link …) is left out of the page.

    Args:
        study_dir: folder of a study.

    Returns:
        Path of the page: one file, with scripts, videos and pictures inside.

    Raises:
        CorruptDataError: if ``results.json`` is missing, or it or ``run.json`` does not hold what a study writes.
    """
    study_dir = Path(study_dir)
    results = read_results(study_dir / "results.json")
    run = read_run(study_dir / "run.json") if (study_dir / "run.json").exists() else {}
    try:
        page = render_page("report.html.j2", _context(study_dir, results, run))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, jinja2.UndefinedError) as error:
        raise CorruptDataError(f"{study_dir}: results.json or run.json is damaged ({error!r}); {AGAIN}") from error
    path = study_dir / "report.html"
    atomic_write(path, page)
    return path


def _context(study_dir: Path, results: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the template shows."""
    rows: list[Row] = results["rows"]
    links: list[Row] = results.get("link") or []
    entries = {entry["name"]: entry for entry in run.get("encoders") or []}
    summaries = summary.summarise(rows, entries)
    envs = summary.environments(rows)
    figures = _figures(rows, summaries, envs)
    columns = [m for m in METRICS if m != "success_rate" and any(m in s.overall for s in summaries)]
    return {
        "study": results.get("study") or run.get("study") or study_dir.name,
        "answer": summary.answer(links),
        "controls": control_table(rows, summaries),
        "robustness": robustness_table(rows, summaries),
        "stressed": stress_table(rows, summaries),
        "corrupted_policies": policy_corruption_tables(rows, summaries),
        "temporal": temporal_table(rows, summaries),
        "chains": chain_table(rows, summaries),
        "membership": pareto_table(rows, summaries),
        "claims": _claims(results.get("claims") or []),
        "counts": _counts(rows, summaries, envs),
        "checks": _checks(summaries, envs),
        "crashes": [row for row in rows if row["metric"] in ("crashed_rollouts", "crashed_chains")],
        "envs": envs,
        "groups": [(key, label, [s for s in summaries if s.group == key]) for key, label in summary.GROUPS.items()],
        "columns": columns,
        "main_columns": [name for name in columns if name not in DETAIL_COLUMNS],
        "metrics": METRICS,
        "overall_of": lambda item: item.overall,
        "env_of": lambda env: lambda item: item.by_env[env],
        "links": link_tables(links),
        "proxies_compared": len({row["proxy"] for row in links if row["statistic"] == "spearman"}),
        "curves": _curves(run.get("curves") or {}),
        "videos": _videos(study_dir, run.get("videos") or []),
        "frames": embedded(study_dir, run.get("frames") or []),
        "reconstructions": embedded(study_dir, run.get("reconstructions") or []),
        "encoders": list(entries.values()),
        "provenance": run.get("provenance") or {},
        "config": json.dumps(run["config"], indent=2, ensure_ascii=False) if run.get("config") else "",
        "cells": _cells(run.get("cells") or []),
        "wall_s": run.get("wall_s"),
        "cells_wall_s": run.get("cells_wall_s"),
        "resumed": any(cell.get("cached") for cell in run.get("cells") or []),
        "reproduce": run.get("reproduce") or (run.get("provenance") or {}).get("command") or "",
        "figures": script_json(figures),
        "figures_present": {name: bool(content) for name, content in figures.items()},
    }


def _claims(claims: Iterable[Row]) -> list[dict[str, Any]]:
    """Claims in order, each with its own verdict, then its terms and what each benchmark says."""
    own = [c for c in claims if c["benchmark"] == "all" and c["part"] is None]
    return [
        {
            **claim,
            "natural": [c for c in own if c["claim"] == claim["claim"] and c["scope"] != claim["scope"]],
            "details": [c for c in claims if c["claim"] == claim["claim"] and c not in own],
        }
        for claim in own
        if claim["scope"] == own[0]["scope"]
    ]


def _counts(rows: Iterable[Row], summaries: Sequence[EncoderSummary], envs: Sequence[str]) -> dict[str, int]:
    ranked = [s for s in summaries if s.group in ("pretrained", "supervised")]
    # Rows without a policy seed pool others of the list.
    rollouts = [r for r in rows if r["metric"] == "success_rate" and r.get("n") and r.get("policy_seed") is not None]
    return {
        "encoders": len(ranked),
        "families": len({s.family for s in ranked}),
        "runs": max((s.runs for s in ranked), default=0),
        "tasks": len(envs),
        "rollouts": sum(int(r["n"]) for r in rollouts),
        "per_policy": max((int(r["n"]) for r in rollouts), default=0),
    }


def _checks(summaries: Sequence[EncoderSummary], envs: Sequence[str]) -> list[tuple[str, str]]:
    """Success of the policies that show whether the tasks can be solved, and whether for nothing: name, counts."""
    checks = []
    for name in ("expert policy", "state", "constant policy", "random policy"):
        for item in summaries:
            found = [item.by_env[env].get("success_rate") for env in envs] if item.name == name else []
            counts = [f"{rate.successes}/{rate.n}" for rate in found if rate and rate.n]
            if counts:
                checks.append((name, ", ".join(counts)))
    return checks


def link_tables(links: Sequence[Row]) -> list[dict[str, Any]]:
    """One table per environment and scope, the pooled environment first; cells by proxy and statistic.

    A null's range is shown with the statistic that it judges, and the range over left-out families with the rank
    correlation: neither is an interval with a verdict. Success's own reliability is the table's ceiling.
    """
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(links, key=lambda row: row["env"] != "all"):
        empty = {"env": row["env"], "scope": row["scope"], "statistics": {}, "proxies": {}, "ceiling": None}
        table = tables.setdefault((row["env"], row["scope"]), empty | {"n": row.get("n_encoders")})
        if row["statistic"] == "split_half_reliability":
            table["ceiling"] = row
            continue
        statistic, part = LINK_NOTES.get(row["statistic"], (row["statistic"], "row"))
        table["statistics"][statistic] = True
        table["proxies"].setdefault(row["proxy"], {}).setdefault(statistic, {})[part] = row
    return list(tables.values())


def _figures(rows: Sequence[Row], summaries: Sequence[EncoderSummary], envs: Sequence[str]) -> dict[str, Any]:
    """Data of the interactive figures; the page's script draws them."""
    panels = [("all", "Mean over tasks")] if len(envs) > 1 else []
    panels += [(env, label_env(env)) for env in envs]
    bars = []
    for env, title in panels:
        cells = [(s, s.overall if env == "all" else s.by_env[env]) for s in summaries]
        bars.append({"title": title, "bars": [_bar(s, found) for s, found in cells if "action_r2" in found]})
    pareto = [
        _identity(s) | {"x": _point(s.overall["psnr_db"]), "y": _point(s.overall["action_r2"])}
        for s in summaries
        if {"psnr_db", "action_r2"} <= s.overall.keys()
    ]
    return {
        "bars": [panel for panel in bars if panel["bars"]],
        "pareto": pareto if len(pareto) > 1 else [],
        "scatter": _scatter(rows, summaries, envs),
        "checkpoints": _checkpoints(rows, envs),
        "metrics": {name: label_metric(name) for name in (*summary.PROXIES, "success_rate")},
    }


def _identity(item: EncoderSummary) -> dict[str, Any]:
    return {"name": label_name(item.name), "family": item.family, "group": item.group}


def _point(estimate: Estimate) -> dict[str, Any]:
    return dataclasses.asdict(estimate)


def _bar(item: EncoderSummary, found: Mapping[str, Estimate]) -> dict[str, Any]:
    random_actions = found.get("action_r2_random_actions")
    return _identity(item) | {
        "r2": _point(found["action_r2"]),
        "random_r2": _point(random_actions) if random_actions else None,
    }


def _scatter(rows: Sequence[Row], summaries: Sequence[EncoderSummary], envs: Sequence[str]) -> dict[str, Any]:
    """Proxy to environment to points, one per encoder and pretraining run."""
    of_encoder: dict[str, list[Row]] = {item.name: [] for item in summaries}
    for row in rows:
        if row.get("checkpoint") is None and row["encoder"] in of_encoder:
            of_encoder[row["encoder"]].append(row)
    runs = {name: sorted({row["seed"] for row in own}) for name, own in of_encoder.items()}
    found: dict[str, list[dict[str, Any]]] = {}
    for env in envs:
        for proxy in summary.PROXIES:
            points = [
                _identity(item) | {"seed": seed, "x": _point(x), "y": _point(y)}
                for item in summaries
                for seed in runs[item.name]
                if (x := _one_run(of_encoder[item.name], proxy, env, seed))
                and (y := _one_run(of_encoder[item.name], "success_rate", env, seed))
            ]
            if points:
                found.setdefault(proxy, []).append({"title": label_env(env), "points": points})
    return found


def _one_run(rows: Sequence[Row], metric: str, env: str, seed: int) -> Estimate | None:
    """The estimate of one pretraining run among an encoder's rows, over all environments where not of one."""
    chosen = summary.select(rows, metric, env=env, seed=seed) or summary.select(rows, metric, env="all", seed=seed)
    if metric == "success_rate":
        return summary.success_of(chosen)
    return Estimate(chosen[0]["value"], chosen[0]["low"], chosen[0]["high"]) if chosen else None


def _checkpoints(rows: Sequence[Row], envs: Sequence[str]) -> list[dict[str, Any]]:
    """Action R² and success along pretraining, mean over tasks and runs; empty where no checkpoint was kept."""
    lines: dict[str, dict[str, Any]] = {}
    for metric in ("action_r2", "success_rate"):
        steps = sorted({row["checkpoint"] for row in rows if row.get("checkpoint") is not None})
        for name in dict.fromkeys(row["encoder"] for row in rows if row.get("checkpoint") is not None):
            line = lines.setdefault(name, {"name": label_name(name), "steps": [*map(str, steps), "final"]})
            line["family"] = next(row["family"] for row in rows if row["encoder"] == name)
            line["group"] = summary.group_of(name, line["family"])
            line[metric] = [_mean_at(rows, metric, name, step, envs) for step in (*steps, None)]
    return list(lines.values())


def _mean_at(rows: Sequence[Row], metric: str, encoder: str, step: int | None, envs: Sequence[str]) -> float | None:
    chosen = [row for row in summary.select(rows, metric, encoder=encoder, checkpoint=step) if row["env"] in envs]
    return sum(row["value"] for row in chosen) / len(chosen) if chosen else None


def _curves(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """Loss curves as SVG paths in a 100 × 40 box: a panel per encoder (and suite), a line per pretraining run."""
    panels: dict[str, list[tuple[Sequence[float], Sequence[float]]]] = {}
    for name, curve in curves.items():
        pairs = [pair for pair in zip(curve["step"], curve["loss"], strict=False) if math.isfinite(pair[1])]
        if len(pairs) > 1:
            stride = max(1, len(pairs) // CURVE_POINTS)
            steps, losses = zip(*pairs[::stride], strict=True)
            panels.setdefault(name.rpartition("/")[0], []).append((steps, losses))
    drawn = []
    for name, lines in panels.items():
        low, high = (bound(value for _, losses in lines for value in losses) for bound in (min, max))
        last = max(steps[-1] for steps, _ in lines) or 1
        paths = [
            "M"
            + " L".join(
                f"{100 * step / last:.1f},{40 - 40 * (loss - low) / ((high - low) or 1):.1f}"
                for step, loss in zip(steps, losses, strict=True)
            )
            for steps, losses in lines
        ]
        drawn.append({"name": name, "paths": paths, "first": lines[0][1][0], "last": lines[0][1][-1], "steps": last})
    return drawn


def _videos(study_dir: Path, entries: Iterable[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Videos by environment, successes first."""
    videos: dict[str, list[dict[str, Any]]] = {}
    for video in sorted(embedded(study_dir, entries), key=lambda video: not video["success"]):
        videos.setdefault(video["env"], []).append(video)
    return videos


def _cells(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cells by kind: how many, how many were reused, and the seconds that they took."""
    kinds: dict[str, dict[str, Any]] = {}
    for cell in cells:
        kind = kinds.setdefault(cell["kind"], {"kind": cell["kind"], "count": 0, "cached": 0, "wall_s": 0.0})
        kind["count"] += 1
        kind["cached"] += bool(cell.get("cached"))
        kind["wall_s"] += cell.get("wall_s") or 0.0
    return list(kinds.values())
