"""The report's further tables: controls, robustness and the Pareto front, one line per encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.probes.pareto import pareto_membership
from latentgym.results import Row as ResultRow
from latentgym.seeding import numpy_generator
from latentgym.studies.assemble import Measured, replicate_key
from latentgym.studies.evidence import BENCHMARKS
from latentgym.studies.summary import EncoderSummary, Estimate, combine, environments, over_tasks

Row = Mapping[str, Any]
Array = NDArray[np.float64]
MEMBERSHIP = "pareto_membership"
CONTROLS = {
    "action_r2": "action R²",
    "action_r2_shuffled_actions": "actions shuffled",
    "action_r2_shuffled_endpoints": "endpoints shuffled",
    "action_r2_time_shifted": "actions shifted in time",
    "action_r2_control_task": "control task",
    "selectivity": "selectivity",
}
ROBUSTNESS = {"corrupted_r2": "R²", "r2_drop": "drop", "latent_cosine_similarity": "cosine"}
STRESSED = {
    ("stress_r2", "shuffle"): "frames shuffled",
    ("stress_r2", "reverse"): "frames reversed",
    ("reverse_negated_r2", "reverse"): "reversed, prediction negated",
    ("stress_r2", "freeze"): "first frame only",
}
_PROBED = {"readout": "ridge", "input": "pair", "k": 1, "subset": "all", "dimension": "macro"}
# Metric and subset of the windows to what the column is called.
TEMPORAL = {
    ("action_r2", "all"): "two frames",
    ("single_frame_r2", "all"): "one frame",
    ("temporal_gain", "all"): "gain",
    ("temporal_gain", "random_actions"): "gain, random actions",
}
MEAN_CHAIN_LENGTH = "mean_chain_length"
NOT_ON_FRONT = ("floor", "random", "reference")


def membership_rows(measured: Sequence[Measured], suite: str, seed: int) -> list[ResultRow]:
    """How often each encoder is on a suite's front of PSNR and action R², over resampled episodes and runs.

    Every replicate takes one of the encoder's pretraining runs and one resample of the test episodes, the same one for
    every encoder.

    Args:
        measured: the suite's encoders; floors, references and intermediate checkpoints are left out.
        suite: its name.
        seed: the study's seed.
    """
    coordinates: dict[str, list[list[Array]]] = {}
    first: dict[str, Measured] = {}
    fidelity, accuracy = replicate_key("psnr_db"), replicate_key("action_r2")
    for item in measured:
        family = item.identity["family"]
        known = item.use.checkpoint is None and {fidelity, accuracy} <= set(item.replicates)
        if known and family not in NOT_ON_FRONT:
            first.setdefault(item.use.name, item)
            pair = [item.replicates[fidelity], item.replicates[accuracy], np.array([item.use.seed], np.float64)]
            coordinates.setdefault(item.use.name, []).append(pair)
    if len(coordinates) < 2:
        return []
    drawn = [_drawn(runs, numpy_generator(seed, "pareto", suite, name)) for name, runs in coordinates.items()]
    shares = pareto_membership(*(np.stack(column, axis=1) for column in zip(*drawn, strict=True)))
    return [
        ResultRow(
            **{**first[name].identity, "env": suite}, readout="decoder", metric=MEMBERSHIP, value=float(share),
            n=len(drawn[0][0]),
        )
        for name, share in zip(coordinates, shares, strict=True)
    ]  # fmt: skip


def _drawn(runs: Sequence[Sequence[Array]], rng: np.random.Generator) -> tuple[Array, Array]:
    """Replicates ``(R,)`` of both measures, averaged over tasks, from one run each."""
    seeds = sorted({int(one[2][0]) for one in runs})
    tables = [
        np.stack([np.mean([one[axis] for one in runs if one[2][0] == seed], axis=0) for seed in seeds])
        for axis in (0, 1)
    ]
    chosen = rng.integers(len(seeds), size=tables[0].shape[1])
    return tables[0][chosen, np.arange(len(chosen))], tables[1][chosen, np.arange(len(chosen))]


def pareto_table(rows: Sequence[Row], summaries: Sequence[EncoderSummary]) -> dict[str, Any]:
    """Membership by encoder and suite; empty where no study computed it."""
    found = [row for row in rows if row["metric"] == MEMBERSHIP and row["value"] is not None]
    suites = list(dict.fromkeys(row["env"] for row in found))
    shares = {(row["encoder"], row["env"]): row["value"] for row in found}
    lines = [(s.name, [shares.get((s.name, suite)) for suite in suites]) for s in summaries]
    lines = [(name, values) for name, values in lines if any(value is not None for value in values)]
    return {"suites": suites, "lines": sorted(lines, key=lambda line: -max(v or 0.0 for v in line[1]))}


def control_table(rows: Sequence[Row], summaries: Sequence[EncoderSummary]) -> dict[str, Any]:
    """The probe beside its controls, floors and references last; empty where no control ran."""
    wanted = {metric: (metric, None) for metric in CONTROLS}
    table = _table(rows, summaries, wanted)
    present = [metric for metric in CONTROLS if any(cells.get(metric) for _, _, cells in table)]
    return {"columns": {metric: CONTROLS[metric] for metric in present} if len(present) > 1 else {}, "lines": table}


def robustness_table(rows: Sequence[Row], summaries: Sequence[EncoderSummary]) -> dict[str, Any]:
    """Clean score, and score, drop and similarity under every corruption that was scored."""
    conditions = list(dict.fromkeys(row["condition"] for row in rows if row["metric"] == "corrupted_r2"))
    wanted = {(metric, condition): (metric, condition) for condition in conditions for metric in ROBUSTNESS}
    table = [line for line in _table(rows, summaries, {"clean": ("action_r2", None), **wanted}) if len(line[2]) > 1]
    return {"conditions": conditions, "metrics": ROBUSTNESS, "lines": table}


def stress_table(rows: Sequence[Row], summaries: Sequence[EncoderSummary]) -> dict[str, Any]:
    """Clean score, and score under every temporal stress; empty where none was scored."""
    wanted: dict[Any, tuple[str, str | None]] = {"clean": ("action_r2", None), **{pair: pair for pair in STRESSED}}
    table = [line for line in _table(rows, summaries, wanted) if len(line[2]) > 1]
    present = {pair: label for pair, label in STRESSED.items() if any(pair in cells for _, _, cells in table)}
    return {"columns": present, "lines": table}


def policy_corruption_tables(rows: Sequence[Row], summaries: Sequence[EncoderSummary]) -> list[dict[str, Any]]:
    """Success of policies under every corruption, with the drop from clean: over all tasks, then task by task.

    A corruption that was run at several severities also has its mean drop over them, under its name alone.
    """
    dropped = [row for row in rows if row["metric"] == "success_drop"]
    conditions = list(dict.fromkeys(row["condition"] for row in dropped))
    if not conditions:
        return []
    policies = {row["policy_seed"] for row in dropped}
    # Only the policies that met corruptions: clean success of others would not be what the drop is from.
    chosen = [row for row in rows if row.get("readout") == "policy" and row.get("policy_seed") in policies]
    wanted: dict[Any, tuple[str, str | None]] = {"clean": ("success_rate", None)}
    wanted.update({("success_rate", c): ("success_rate", c) for c in conditions if ":" in c})
    wanted.update({("success_drop", c): ("success_drop", c) for c in conditions})
    envs = environments(dropped)
    tables = []
    for label in ["all", *envs] if len(envs) > 1 else envs:
        own = [row for row in chosen if label in ("all", row["env"]) and row["env"] in envs]
        lines = [line for line in _table(own, summaries, wanted, {"readout": "policy"}) if len(line[2]) > 1]
        tables.append({"env": label, "conditions": conditions, "lines": lines})
    return tables


def temporal_table(rows: Sequence[Row], summaries: Sequence[EncoderSummary]) -> dict[str, Any]:
    """Temporal gain benchmark by benchmark, where a study has several: what of the action needs time in each."""
    envs = environments(rows)
    groups = {name: [env for env in envs if _benchmark(env) == name] for name in dict.fromkeys(map(_benchmark, envs))}
    if len(groups) < 2:
        return {"benchmarks": {}, "metrics": TEMPORAL, "lines": []}
    chosen = {
        (metric, subset): [
            row
            for row in rows
            if (row["metric"], row.get("subset"), row["readout"], row.get("k")) == (metric, subset, "ridge", 1)
            and row.get("dimension") in (None, "macro")
            and row.get("checkpoint") is None
            and row.get("input") != "difference"
            and row["value"] is not None
        ]
        for metric, subset in TEMPORAL
    }
    lines = []
    for item in summaries:
        cells = {}
        for column, found in chosen.items():
            mine = [row for row in found if row["encoder"] == item.name]
            for name, members in groups.items():
                parts = [[row for row in mine if row["env"] == env] for env in members]
                if all(parts):
                    cells[name, column] = over_tasks([combine(part, independent=False) for part in parts])
        if cells:
            lines.append((item.name, item.group, cells))
    return {"benchmarks": groups, "metrics": TEMPORAL, "lines": lines}


def _benchmark(env: str) -> str:
    known = (name for prefix, name in BENCHMARKS.items() if env.lower().startswith(prefix.lower()))
    return next(known, "calvin" if env.startswith("calvin") else env.partition("/")[0])


def chain_table(rows: Sequence[Row], summaries: Sequence[EncoderSummary]) -> dict[str, Any]:
    """Chains of instructions: share done up to each length, and mean length; empty where none were followed."""
    prefix = "chain_success_at_"
    found = [row for row in rows if row["metric"].startswith((prefix, MEAN_CHAIN_LENGTH)) and row["value"] is not None]
    columns = sorted({row["metric"] for row in found}, key=lambda name: (name == MEAN_CHAIN_LENGTH, name))
    lines = []
    for item in summaries:
        cells = {
            column: combine(mine, independent=False)
            for column in columns
            if (mine := [row for row in found if row["metric"] == column and row["encoder"] == item.name])
        }
        if cells:
            lines.append((item.name, item.group, cells))
    labels = {
        name: "mean length" if name == MEAN_CHAIN_LENGTH else f"{name.removeprefix(prefix)} done" for name in columns
    }
    return {"columns": labels, "lines": lines, "n": max((row["n"] or 0 for row in found), default=0)}


def _table(
    rows: Sequence[Row],
    summaries: Sequence[EncoderSummary],
    wanted: Mapping[Any, tuple[str, str | None]],
    columns: Mapping[str, Any] = _PROBED,
) -> list[tuple[str, str, dict[Any, Estimate]]]:
    """Encoder, group and estimates by column, over every task and run; ``columns`` are those of the rows that count."""
    index: dict[tuple[str, str, str, str | None], list[Row]] = {}
    for row in rows:
        fits = all(row.get(name) in (value, None) for name, value in columns.items())
        if fits and row["value"] is not None and row.get("checkpoint") is None:
            index.setdefault((row["encoder"], row["metric"], row["env"], row.get("condition")), []).append(row)
    envs = environments(rows)
    lines = []
    for item in summaries:
        cells = {}
        for column, (metric, condition) in wanted.items():
            parts = [index.get((item.name, metric, env, condition)) for env in envs]
            # A mean over fewer tasks than the others' would not be comparable with them.
            if envs and all(parts):
                cells[column] = over_tasks([combine(part or [], independent=False) for part in parts])
        if cells:
            lines.append((item.name, item.group, cells))
    return lines
