"""What a study's rows say, condensed for people: one line per encoder, and a plain answer about the link."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from latentgym.statistics import wilson_interval

Row = Mapping[str, Any]

# Which of a metric's rows stand in the summary; a row that leaves a field open (None) matches as well.
_PROBE = {"readout": "ridge", "input": "pair", "k": 1, "subset": "all", "dimension": "macro"}
HEADLINE: dict[str, dict[str, Any]] = {
    "action_r2": _PROBE,
    "action_r2_share_of_state": _PROBE,
    "action_r2_random_actions": {**_PROBE, "subset": "random_actions"},
    "single_frame_r2": {**_PROBE, "input": "single"},
    "temporal_gain": {**_PROBE, "input": None},
    "pearson_r": _PROBE,
    "cloning_r2": {"dimension": "macro"},
    "psnr_db": {"readout": "decoder"},
    "success_rate": {"readout": "policy"},
}
# Proxy of the link to the metric and the fields that hold it; a headline metric is a proxy under its own name.
PROXIES: dict[str, tuple[str, dict[str, Any]]] = {
    **{metric: (metric, fields) for metric, fields in HEADLINE.items() if metric != "success_rate"},
    "action_r2_k4": ("action_r2", {**_PROBE, "k": 4}),
    "action_r2_mlp": ("action_r2", {**_PROBE, "readout": "mlp"}),
    "action_r2_mean_pooled": ("action_r2", {**_PROBE, "readout": "ridge_mean"}),
    "selectivity": ("selectivity", _PROBE),
    "description_length": ("description_length_bits_saved", {**_PROBE, "readout": "ridge_mean"}),
    "state_r2": ("state_r2", {**_PROBE, "input": "single"}),
}
TOO_FEW = "too few encoders"
CORRELATIONS = ("spearman", "kendall", "pearson")
GROUPS = {
    "pretrained": "Pretrained without action labels",
    "supervised": "Pretrained with action labels (supervised reference)",
    "reference": "References: privileged, nothing need beat them",
    "floor": "Floors: anything useful should beat them",
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; for success also the counts.

    Attributes:
        value: the estimate.
        low: lower end, ``None`` where no interval is known.
        high: upper end, ``None`` where no interval is known.
        successes: successful rollouts, for success rates.
        n: rollouts or episodes behind it.
    """

    value: float
    low: float | None = None
    high: float | None = None
    successes: int | None = None
    n: int | None = None


@dataclasses.dataclass(frozen=True)
class EncoderSummary:
    """One line of the main table.

    Attributes:
        name: encoder name.
        family: pretraining family.
        group: key of :data:`GROUPS`.
        runs: number of pretraining runs behind the line.
        by_env: environment to metric to estimate, final checkpoints, all runs together.
        overall: metric to estimate over all environments.
    """

    name: str
    family: str
    group: str
    runs: int
    by_env: dict[str, dict[str, Estimate]]
    overall: dict[str, Estimate]


def group_of(name: str, family: str, trained_on_actions: bool = False) -> str:
    """Which part of the table an encoder belongs to: a key of :data:`GROUPS`."""
    if family in ("floor", "random"):
        return "floor"
    if family == "reference":
        return "reference"
    return "supervised" if trained_on_actions or family in ("inverse_dynamics", "supervised") else "pretrained"


def select(rows: Iterable[Row], name: str, **fields: Any) -> list[Row]:
    """Defined rows of a headline metric or proxy whose ``fields`` (env, encoder, seed, checkpoint) are as given.

    Rows of data that something was done to are none of them.
    """
    metric, wanted = PROXIES.get(name) or (name, HEADLINE[name])

    def fits(row: Row) -> bool:
        return (
            row["metric"] == metric
            and row["value"] is not None
            and row.get("condition") is None
            and all(row.get(field) == value for field, value in fields.items())
            and all(value is None or row.get(field) in (value, None) for field, value in wanted.items())
        )

    return [row for row in rows if fits(row)]


def success_of(rows: Sequence[Row]) -> Estimate | None:
    """Success of one encoder in one environment, over its runs and policy seeds; ``None`` without rows.

    One policy has Wilson's interval, several policy seeds of one run have the row that crosses them with the initial
    states. Where several runs are pooled, Wilson's interval over the pooled counts is widened by 1.96 standard errors
    of the mean between runs, in quadrature.
    """
    crossed = [row for row in rows if row.get("policy_seed") is None]
    chosen = [row for row in crossed or rows if row.get("n")]
    counted = [(round(row["value"] * row["n"]), int(row["n"])) for row in chosen]
    if not counted:
        return None
    successes, n = sum(hits for hits, _ in counted), sum(count for _, count in counted)
    if len(chosen) == 1 and chosen[0].get("low") is not None:
        return Estimate(successes / n, chosen[0]["low"], chosen[0]["high"], successes, n)
    low, high = wilson_interval(successes, n)
    spread = _standard_error([hits / count for hits, count in counted])
    value = successes / n
    low, high = value - math.hypot(value - low, spread), value + math.hypot(high - value, spread)
    return Estimate(value, max(0.0, low), min(1.0, high), successes, n)


def summarise(rows: Sequence[Row], encoders: Mapping[str, Row]) -> list[EncoderSummary]:
    """One summary per encoder, best action R² first within its group.

    Args:
        rows: all rows of ``results.json``.
        encoders: encoder name to its entry in ``run.json``; may lack some.
    """
    rows = [row for row in rows if row.get("checkpoint") is None]
    families = {row["encoder"]: row["family"] for row in rows}
    envs = environments(rows)
    summaries = [_summary(name, family, rows, envs, encoders.get(name, {})) for name, family in families.items()]
    order = list(GROUPS)

    def rank(item: EncoderSummary) -> tuple[int, float, str]:
        probed = item.overall.get("action_r2")
        return order.index(item.group), -probed.value if probed else math.inf, item.name

    return sorted(summaries, key=rank)


def environments(rows: Iterable[Row]) -> list[str]:
    """Environments in order of appearance; ``"all"`` and suites, which only decoders are measured on, are none."""
    return list(dict.fromkeys(row["env"] for row in rows if row["env"] != "all" and row["readout"] != "decoder"))


def _summary(name: str, family: str, rows: Sequence[Row], envs: Sequence[str], entry: Row) -> EncoderSummary:
    mine = [row for row in rows if row["encoder"] == name]
    decoded = dict.fromkeys(row["env"] for row in mine if row["readout"] == "decoder" and row["env"] != "all")
    by_env = {env: _estimates(mine, env) for env in dict.fromkeys([*envs, *decoded])}
    overall = _estimates(mine, "all")
    for metric in HEADLINE:
        parts = [estimates[metric] for estimates in by_env.values() if metric in estimates]
        # A mean over fewer tasks than the others' would not be comparable with them.
        if metric not in overall and parts and (len(parts) == len(envs) or metric == "psnr_db"):
            overall[metric] = over_tasks(parts)
    return EncoderSummary(
        name=name,
        family=family,
        group=group_of(name, family, bool(entry.get("trained_on_actions"))),
        runs=len({row["seed"] for row in mine}),
        by_env=by_env,
        overall=overall,
    )


def _estimates(rows: Sequence[Row], env: str) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {}
    for metric in HEADLINE:
        chosen = select(rows, metric, env=env)
        if metric == "success_rate":
            estimate = success_of(chosen)
        else:
            estimate = combine(chosen, independent=False) if chosen else None
        if estimate is not None:
            found[metric] = estimate
    if "temporal_gain" not in found and {"action_r2", "single_frame_r2"} <= found.keys():
        found["temporal_gain"] = Estimate(found["action_r2"].value - found["single_frame_r2"].value)
    return found


def over_tasks(parts: Sequence[Estimate]) -> Estimate:
    """Unweighted mean over tasks, whose episodes are independent of each other."""
    merged = combine([dataclasses.asdict(part) for part in parts], independent=True)
    if all(part.successes is not None for part in parts):
        hits, n = sum(part.successes or 0 for part in parts), sum(part.n or 0 for part in parts)
        return dataclasses.replace(merged, successes=hits, n=n)
    return merged


def combine(parts: Sequence[Row], *, independent: bool) -> Estimate:
    """Mean of estimates with an interval around it.

    Runs of one encoder share their test episodes, so their errors do not average out: the mean half-width is kept
    and the standard error between runs is added in quadrature. Tasks are independent: half-widths shrink.
    """
    values = [float(part["value"]) for part in parts]
    value = sum(values) / len(values)
    if any(part.get("low") is None or part.get("high") is None for part in parts):
        return Estimate(value, n=parts[0].get("n") if len(parts) == 1 else None)
    if len(parts) == 1:
        return Estimate(value, parts[0]["low"], parts[0]["high"], n=parts[0].get("n"))
    half = [[part["value"] - part["low"] for part in parts], [part["high"] - part["value"] for part in parts]]
    if independent:
        below, above = (math.hypot(*side) / len(parts) for side in half)
    else:
        spread = _standard_error(values)
        below, above = (math.hypot(sum(side) / len(parts), spread) for side in half)
    return Estimate(value, value - below, value + above)


def _standard_error(values: Sequence[float]) -> float:
    """1.96 standard errors of the mean of ``values``; 0 for fewer than two."""
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return 1.96 * math.sqrt(variance / len(values))


@dataclasses.dataclass(frozen=True)
class Answer:
    """The study's answer to its question.

    Attributes:
        outcome: ``"yes"``, ``"no"`` (a clear negative relation), ``"inconclusive"`` or ``"unmeasured"`` (no link, or
            too few encoders for one).
        main: link row that the outcome rests on: action R² against success, rank correlation, first scope.
        other_scopes: the same row in the other scopes, such as without the supervised reference.
        best: link row of the proxy with the highest rank correlation.
    """

    outcome: str
    main: Row | None = None
    other_scopes: tuple[Row, ...] = ()
    best: Row | None = None


def answer(links: Sequence[Row]) -> Answer:
    """Read the answer off the link table; "inconclusive" wherever the interval spans the null."""
    ranks = [row for row in links if row["statistic"] == "spearman" and row["value"] is not None]
    envs = [row["env"] for row in ranks]
    pooled = [row for row in ranks if row["env"] == ("all" if "all" in envs else envs[0])] if ranks else []
    headline = [row for row in pooled if row["proxy"] == "action_r2"]
    if not headline or headline[0].get("verdict") == TOO_FEW:
        return Answer("unmeasured")
    main = headline[0]
    rivals = [row for row in pooled if row["scope"] == main["scope"]]
    best = max(rivals, key=lambda row: row["value"])
    outcome = "inconclusive" if inconclusive(main) else ("yes" if main["value"] > 0 else "no")
    # Intermediate checkpoints are no replicates: their scope stays in the tables.
    others = tuple(row for row in headline[1:] if "checkpoint" not in row["scope"])
    return Answer(outcome, main, others, best)


def inconclusive(row: Row) -> bool:
    """Whether a link row's interval is missing or spans its null (0 for correlations; else its verdict decides)."""
    if row["low"] is None or row["high"] is None or row.get("verdict") in ("inconclusive", TOO_FEW):
        return True
    return bool(row["statistic"].startswith(CORRELATIONS) and row["low"] <= 0.0 <= row["high"])
